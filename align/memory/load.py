"""How many tokens an experiment works on at once: the largest of its sampling and of its training passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from align.memory.place import Place
from align.schema import Experiment


@dataclass(frozen=True)
class Load:
    prompt: int
    completion: int
    rows: int  # completions decoded side by side; 0: none is
    siblings: int  # of them that answer one prompt
    tokens: float  # of a pass forward and backward; 0: nothing is trained
    predicted: float  # of them completion tokens that go through the LM head
    seen: float  # the most query-position pairs of one block of attention
    whole_logits: bool  # padded rows and all logits, as TRL's ORPO has them

    @property
    def samples(self) -> bool:
        return self.rows > 0

    @property
    def trains(self) -> bool:
        return self.tokens > 0


def load_of(e: Experiment, place: Place) -> Load:
    prompt, completion = place.prompt, place.completion or e.sampling.max_new_tokens
    rows, siblings = _rows(e, place)
    tokens, predicted, together = TOKENS[e.algo.kind](e, prompt, completion, place.ranks)
    seen = (prompt + completion) ** 2
    if together > 1:
        seen = max(prompt**2, together * completion * (prompt + completion))
    whole = e.algo.kind == "preference" and e.algo.loss == "orpo"
    return Load(prompt, completion, rows, siblings, tokens, predicted, seen, whole)


def _rows(e: Experiment, place: Place) -> tuple[int, int]:
    """Of the rollouts and the probe, whichever decodes more side by side."""
    if e.algo.kind == "reward":
        return 0, 1
    jobs = [(e.probe.prompts * e.probe.samples, e.probe.samples)]
    if e.algo.kind == "on_policy":
        jobs.append((e.algo.prompts_per_step * e.algo.group_size // place.ranks, e.algo.group_size))
    if e.algo.kind == "best_of_n":
        jobs.append((e.probe.prompts * e.probe.samples * (2**e.steps - 1), e.probe.samples * (2**e.steps - 1)))
    found = [(min(rows, e.sampling.rows), min(siblings, e.sampling.rows)) for rows, siblings in jobs]
    return max(found, key=lambda job: (job[0], -job[1]))


Tokens = tuple[float, float, int]  # of a pass; predicted; rows of a prompt in it


def _on_policy(e: Experiment, prompt: int, completion: int, ranks: int) -> Tokens:
    """align.forward.micro_batches: as many completions as hold micro_batch_tokens, a prompt counted once."""
    algo = e.algo
    rows = max(algo.prompts_per_step * algo.group_size // algo.minibatches // ranks, 1)
    rows = min(rows, algo.micro_batch or rows)
    siblings = min(algo.group_size, rows)
    whole = math.ceil(rows / siblings) * prompt + rows * completion
    tokens = max(min(whole, algo.micro_batch_tokens), prompt + completion)
    together = max(min(siblings, (tokens - prompt) // completion), 1)
    return tokens, tokens * together * completion / (prompt + together * completion), int(together)


def _pairs(e: Experiment, prompt: int, completion: int, ranks: int) -> Tokens:
    if e.algo.loss == "orpo":  # padded, each prompt twice
        return 2 * e.algo.micro_batch * (prompt + completion), 0, 1
    return e.algo.micro_batch * (prompt + 2 * (completion - 1)), 2 * e.algo.micro_batch * completion, 2


def _examples(e: Experiment, prompt: int, completion: int, ranks: int) -> Tokens:
    return e.algo.micro_batch * (prompt + completion - 1), e.algo.micro_batch * completion, 1


def _rated(e: Experiment, prompt: int, completion: int, ranks: int) -> Tokens:
    """Of each row's last token a score: nothing goes through an LM head."""
    return e.algo.micro_batch * (prompt + 2 * completion), 0, 2


def _nothing(e: Experiment, prompt: int, completion: int, ranks: int) -> Tokens:
    return 0, 0, 1


TOKENS = {
    "on_policy": _on_policy, "preference": _pairs, "sft": _examples, "reward": _rated, "best_of_n": _nothing,
    "tempered": _nothing,
}  # fmt: skip
