"""Sums with a verifiable answer, from our own generator or from a reasoning_gym dataset.

The unordered problem decides the side: 3 + 4 and 4 + 3 are never on both. Held-out problems depend on the options
alone, not on the seed, so that every run of a task is asked the same ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from align.data.dataset import Data, digest, text_hash
from align.data.errors import DataError
from align.records import Demonstration, PreferencePair, Prompt
from reward_models.verifiers import find_last_integer, last_integer

ENUMERABLE = 20_000  # larger spaces of problems are sampled
ORDERINGS = 2  # of one unordered problem that are held out at most, lest three terms fill up with permutations
GYM_TRIES = 20  # fresh reasoning_gym items looked at per one wanted, before the dataset counts as exhausted
WRONG_BY = (-10, -3, -2, -1, 1, 2, 3, 10)  # how far a rejected answer is off

Problem = tuple[int, ...]


def load(cfg: Any, seed: int) -> Data:
    """Data of `cfg` (task, terms, low, high, train, heldout). `seed` draws the training problems from a surplus."""
    heldout, train, notes = _sums(cfg, seed) if cfg.task == "sum" else _gym(cfg, seed)
    if len(train) < cfg.train:
        notes.append(f"data.train={cfg.train}: only {len(train)} training problems are left beside the held-out ones")
    assert heldout and train
    pairs = [_pair(prompt) for prompt in train]
    held_pairs = [_pair(prompt) for prompt in heldout]
    content = [[prompt.id, prompt.text, prompt.info["answer"]] for prompt in (*train, *heldout)]
    return Data(
        name=cfg.name,
        train_prompts=tuple(train),
        heldout_prompts=tuple(heldout),
        train_pairs=tuple(pairs),
        heldout_pairs=tuple(held_pairs),
        demonstrations=tuple(Demonstration(pair.prompt, pair.chosen) for pair in pairs),
        verifier=last_integer,
        gold=None,
        fingerprint=digest([content, len(train)]),
        notes=tuple(notes),
    )


# --- sums ---


def _sums(cfg: Any, seed: int) -> tuple[list[Prompt], list[Prompt], list[str]]:
    ranked = _ranked(cfg.terms, cfg.low, cfg.high, 4 * (cfg.train + cfg.heldout))
    heldout = _hold_out(ranked, cfg.heldout)
    classes = {_topic(problem) for problem in heldout}
    rest = [problem for problem in ranked if _topic(problem) not in classes]
    if len(heldout) < cfg.heldout or not rest:
        raise DataError(
            f"data.heldout={cfg.heldout}: {cfg.terms} terms from {cfg.low} to {cfg.high} give too few "
            "problems to hold out so many and train on others; lower it, raise data.high or data.terms"
        )
    drawn = sorted(random.Random(f"{seed}/train").sample(range(len(rest)), min(cfg.train, len(rest))))
    return [_sum_prompt(problem) for problem in heldout], [_sum_prompt(rest[i]) for i in drawn], []


def _ranked(terms: int, low: int, high: int, wanted: int) -> list[Problem]:
    """Ordered problems by the hash of their unordered problem: all of a small space, a sample of a large one."""
    space = (high - low + 1) ** terms
    if space <= max(ENUMERABLE, wanted):
        found: Iterable[Problem] = itertools.product(range(low, high + 1), repeat=terms)
    else:
        rng = random.Random(f"{terms}/{low}/{high}")
        drawn = (tuple(rng.randint(low, high) for _ in range(terms)) for _ in itertools.count())
        found = itertools.islice(_distinct(drawn), wanted)
    return sorted(found, key=lambda problem: (text_hash(_topic(problem)), text_hash(_expression(problem))))


def _distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    seen = set()
    for problem in problems:
        if problem not in seen:
            seen.add(problem)
            yield problem


def _hold_out(ranked: Sequence[Problem], count: int) -> list[Problem]:
    """The first `count` problems by rank, at most two orderings of each unordered one."""
    groups = itertools.groupby(ranked, key=_topic)
    chosen = itertools.chain.from_iterable(itertools.islice(group, ORDERINGS) for _, group in groups)
    return list(itertools.islice(chosen, count))


def _topic(problem: Problem) -> str:
    return _expression(tuple(sorted(problem)))


def _expression(problem: Problem) -> str:
    return " + ".join(str(term) if term >= 0 else f"({term})" for term in problem)


def _sum_prompt(problem: Problem) -> Prompt:
    expression = _expression(problem)
    text = f"What is {expression}? Answer with the number."
    info = {"answer": sum(problem), "sentence": f"{expression} = {{}}."}
    return Prompt(f"sum/{expression}", ({"role": "user", "content": text},), f"sum/{_topic(problem)}", info)


def _pair(prompt: Prompt) -> PreferencePair:
    """The right answer against a wrong one; how wrong depends on the problem alone."""
    answer, sentence = int(prompt.info["answer"]), prompt.info["sentence"]
    off = WRONG_BY[int(text_hash(prompt.id), 16) % len(WRONG_BY)]
    wrong = answer - off if answer + off < 0 <= answer else answer + off  # a wrong sign would give itself away
    return PreferencePair(prompt, sentence.format(answer), sentence.format(wrong))


# --- reasoning_gym ---


def _gym(cfg: Any, seed: int) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """Problems of a reasoning_gym dataset with integer answers; the question decides the side."""
    heldout = list(itertools.islice(_gym_prompts(cfg.task, "heldout", cfg.heldout), cfg.heldout))
    if len(heldout) < cfg.heldout:
        raise DataError(f"data.heldout={cfg.heldout}: task={cfg.task} has {len(heldout)} distinct problems; lower it")
    held = {prompt.topic for prompt in heldout}
    fresh = (prompt for prompt in _gym_prompts(cfg.task, f"train/{seed}", cfg.train) if prompt.topic not in held)
    train = list(itertools.islice(fresh, cfg.train))
    if not train:
        raise DataError(f"data.task={cfg.task} has no problems left to train on beside {cfg.heldout} held-out ones")
    return heldout, train, [f"data.terms, data.low and data.high are not read: task={cfg.task} is no task=sum"]


def _gym_prompts(task: str, stream: str, wanted: int) -> Iterator[Prompt]:
    """Distinct problems of one random stream. Raises DataError when an answer is no integer."""
    seen = set()
    for item in _gym_items(task, stream, wanted):
        question, answer = str(item["question"]).strip(), str(item["answer"]).strip()
        number = find_last_integer(answer)
        if number is None or answer.replace(",", "") != number:
            raise DataError(
                f"data.task={task}: found the answer {answer[:60]!r}; only datasets whose answers are "
                "integers can be verified here, such as chain_sum, gcd or products"
            )
        topic = f"{task}/{text_hash(' '.join(question.split()))[:16]}"
        if topic not in seen:
            seen.add(topic)
            info = {"answer": int(number), "sentence": "The answer is {}."}
            yield Prompt(topic, ({"role": "user", "content": question},), topic, info)


def _gym_items(task: str, stream: str, wanted: int) -> Any:
    try:
        import reasoning_gym  # optional and slow to import
    except ImportError:
        raise DataError(f"data.task={task} needs a package: pip install reasoning-gym, or data.task=sum") from None
    seed = int(text_hash(f"{task}/{stream}"), 16) % 2**31
    try:
        return reasoning_gym.create_dataset(task, size=GYM_TRIES * wanted, seed=seed)
    except ValueError as error:
        raise DataError(f'data.task={task}: {error}; it must be "sum" or the name of a reasoning_gym dataset') from None
