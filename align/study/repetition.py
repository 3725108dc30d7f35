"""Studies of module `repetition`: how likely a sentence becomes by its own copies, and what decoders make of that.

Sentences are answers of the start model in the annotator's pool, each to another prompt, as raw text without a chat
template. A seed has other sentences, answers to the same prompts. An arm is one of two:

- repetition.copies=k: log-probability of the sentence after k copies of it, or of another prompt's sentence
- repetition.copies=null: the sentence is continued, EOS and every other special token banned, by a decoder

A copy begins with a space, so that its tokens are the same wherever it stands. Its first token counts at no k: nothing
stands before it at k = 0. What comes out has the form of finished runs with one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor
from transformers import GenerationConfig

from align.data.annotator import Pool, answers_to, pool_prompts
from align.data.dataset import digest
from align.forward import Batch, Scorer, score
from align.maths.text import repeated
from align.models import Policy
from align.packing import right_pad
from align.refusals import need
from align.report.arms import SeedRun
from align.seeds import derive
from align.study.engine import Task
from align.study.ground import as_run, start
from align.study.judged import Arms
from align.study.settings import Repetition
from align.study.verdict import assemble
from reward_models.verifiers import ends_cleanly, one_sentence

TOKENS = 2048  # of one scoring pass; bounds memory, changes nothing
LENGTHS = range(10, 41)  # tokens of a sentence: 17 copies of it fit into any context, and it is no mere phrase
FIELDS = {"copy_logprob": "copy/logprob", "rep3": "text/rep3"}  # of a sentence -> key of their mean
Ids = tuple[int, ...]
Said = Mapping[tuple[int, str], str]  # seed, prompt id -> sentence
Measured = dict[tuple[int, str], dict[str, float]]


def measure(tasks: Sequence[Task]) -> Arms:
    """Raises ConfigError, DataError, ModelError."""
    policy, pool = start(tasks)
    owns = {task.arm: _of(task) for task in tasks}
    many = sorted({own.sentences for own in owns.values()})
    need(len(many) == 1, "repetition.sentences", many, "must be the same in all arms")
    said = draw(pool, many[0], sorted({task.seed for task in tasks}))
    meta = {"start_fingerprint": policy.fingerprint, "data_fingerprint": digest([[*key, said[key]] for key in said])}
    copies = Copies(policy, max(own.copies or 0 for own in owns.values()))
    by_arm: dict[str, list[SeedRun]] = {}
    for arm, own in owns.items():
        print(f"measuring {arm}", flush=True)
        its = {task.seed: task for task in tasks if task.arm == arm}
        mine = {key: text for key, text in said.items() if key[0] in its}
        rows = copies.measure(own, mine) if own.copies is not None else continued(policy, own, mine)
        by_arm[arm] = [_run(task, rows, meta) for task in its.values()]
    return assemble(by_arm)


def draw(pool: Pool, many: int, seeds: Sequence[int]) -> dict[tuple[int, str], str]:
    """Of the first `many` prompts with enough different one-sentence answers: seed s has the prompt's (s + 1)-th.

    Raises ConfigError.
    """
    enough, found = max(seeds) + 1, dict[str, list[str]]()
    for name, answers in answers_to(pool, pool_prompts()).items():
        fitting = [
            answer.text.strip() for answer in answers
            if answer.finished and answer.tokens in LENGTHS and one_sentence(answer.text) and ends_cleanly(answer.text)
        ]  # fmt: skip
        if len(different := list(dict.fromkeys(fitting))) >= enough:
            found[name] = different
    need(len(found) >= many, "repetition.sentences", many,
         f"the pool has {len(found)} prompts with {enough} such answers; lower it, or the last seed")  # fmt: skip
    return {(seed, name): found[name][seed] for seed in seeds for name in [*found][:many]}


class Copies:
    """Log-probabilities of sentences after copies; what was scored for one arm is not scored for another.

    One row [sentence x (most + 1)] has every k: its (k + 1)-th copy stands behind k copies.
    """

    def __init__(self, policy: Policy, most: int):
        self.policy, self.most = policy, most
        self.scored: dict[Ids, Tensor] = {}

    def measure(self, own: Repetition, said: Said) -> Measured:
        assert own.copies is not None
        ids = {key: encode(self.policy, text) for key, text in said.items()}
        names = list(dict.fromkeys(name for _, name in said))
        after = dict(zip(names, [*names[1:], names[0]], strict=True))  # another: the next prompt's
        rows: dict[tuple[int, str], tuple[Ids, int]] = {}
        for (seed, name), sentence in ids.items():
            if own.of == "itself":
                rows[seed, name] = sentence * (self.most + 1), len(sentence) * (own.copies + 1)
            else:
                row = ids[seed, after[name]] * own.copies + sentence
                rows[seed, name] = row, len(row)
        self._score([row for row, _ in rows.values()])
        return {
            key: {"copy_logprob": last_sentence(self.scored[row], end, len(ids[key]))}
            for key, (row, end) in rows.items()
        }

    def _score(self, rows: Sequence[Ids]) -> None:
        new = [row for row in dict.fromkeys(rows) if row not in self.scored]
        if not new:
            return
        device = self.policy.device
        ids, mask = right_pad(list(new), self.policy.tokenizer.pad_token_id, device)
        batch = Batch(ids, mask, torch.ones(len(new), dtype=torch.long, device=device), mask[:, 1:])
        logprobs, _ = score(Scorer(self.policy.reference, 1.0), batch, tokens=TOKENS)
        self.scored |= {row: values[: len(row) - 1].cpu() for row, values in zip(new, logprobs, strict=True)}


def last_sentence(logprobs: Tensor, end: int, n: int) -> float:
    """Mean log-probability of the n tokens before `end` of a row, without the first of them; nats per token.

    logprobs [L - 1]: of the row's tokens from the second on, each given those before it
    """
    return float(logprobs[end - n : end - 1].mean())


def continued(policy: Policy, own: Repetition, said: Said) -> Measured:
    """rep-3 of continuations, `own.continued` sentences of each seed; all seeds are decoded side by side."""
    names = list(dict.fromkeys(name for _, name in said))[: own.continued]
    keys = [key for key in said if key[1] in names]
    rows = decode(policy, own, [encode(policy, said[key]) for key in keys])
    return {key: {"rep3": repeated(row) or 0.0} for key, row in zip(keys, rows, strict=True)}


@torch.no_grad()
def decode(policy: Policy, own: Repetition, starts: Sequence[Ids]) -> list[list[int]]:
    """`own.tokens` tokens behind each, by transformers' generate. No model's own defaults: every setting is given."""
    tokenizer = policy.tokenizer
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in starts]}, padding_side="left", return_tensors="pt").to(
        policy.device
    )
    config = GenerationConfig(
        max_new_tokens=own.tokens,
        do_sample=own.temperature > 0,
        temperature=float(own.temperature or 1),  # not read where the likeliest token is taken
        top_p=float(own.top_p),
        top_k=0,
        num_beams=own.beams,
        repetition_penalty=float(own.penalty),
        suppress_tokens=sorted({*tokenizer.all_special_ids, *policy.stop_ids}),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(derive(0, "continuations"))
        rows = policy.reference.generate(**padded, generation_config=config)  # type: ignore[operator]
    return [row[padded["input_ids"].shape[1] :] for row in rows.tolist()]


def encode(policy: Policy, sentence: str) -> Ids:
    return tuple(policy.tokenizer(f" {sentence}", add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _run(task: Task, rows: Measured, meta: dict[str, str]) -> SeedRun:
    samples = {(name, 0): row for (seed, name), row in rows.items() if seed == task.seed}
    fields = next(iter(samples.values()))
    probe = {FIELDS[field]: fmean(row[field] for row in samples.values()) for field in fields}
    return SeedRun(as_run(task, meta), task.seed, {1: probe}, {1: samples})


def _of(task: Task) -> Repetition:
    assert isinstance(task.own, Repetition)
    return task.own
