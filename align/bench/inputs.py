"""What both sides work on: the annotator's prompts, and the start model's own answers from the shipped pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from align.bench.settings import Work
from align.data.annotator import pool_prompts, read_pool
from align.data.tokens import encode_completion, encode_prompt
from align.records import Demonstration, PreferencePair, Prompt
from align.stages import SHIPPED


@dataclass(frozen=True)
class Inputs:
    """Of a row."""

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    pairs: tuple[PreferencePair, ...]  # the first two answers in the pool to each prompt
    groups: tuple[tuple[int, tuple[int, ...]], ...]  # of each prompt: its tokens, those of its completions

    @property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        return tuple(Demonstration(pair.prompt, pair.chosen) for pair in self.pairs)


def inputs(work: Work, tokenizer: Any) -> Inputs:
    answers = _answers()
    known = {prompt.id: prompt for prompt in pool_prompts()}
    chosen = [known[name] for name in work.prompts]
    if work.prompt_tokens is not None:
        chosen = [_padded(prompt, answers[prompt.id], work.prompt_tokens, tokenizer) for prompt in chosen]
    ids = tuple(tuple(encode_prompt(tokenizer, prompt)) for prompt in chosen)
    pairs = tuple(PreferencePair(prompt, answers[prompt.id][0], answers[prompt.id][1]) for prompt in chosen)
    if work.lengths is None:
        sides = (["chosen"] if work.kind == "examples" else ["chosen", "rejected"],) * len(pairs)
        lengths = [tuple(len(encode_completion(tokenizer, getattr(pair, side))) for side in of)
                   for pair, of in zip(pairs, sides, strict=True)]  # fmt: skip
    else:
        lengths = list(work.lengths)
    return Inputs(tuple(chosen), ids, pairs, tuple(zip(map(len, ids), lengths, strict=True)))


def bench_reward(completions: Sequence[Sequence[int]]) -> list[float]:
    """A cheap reward that tells the completions of a group apart."""
    return [(sum(ids) % 101) / 101 for ids in completions]


def _answers() -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in read_pool(next(SHIPPED.glob("pool-*.jsonl.gz"))).rows:
        texts.setdefault(row.prompt_id, []).append(row.text)
    return texts


def _padded(prompt: Prompt, answers: Sequence[str], tokens: int, tokenizer: Any) -> Prompt:
    """The prompt behind as much of the answers to it, word by word, as makes it at most `tokens` long."""
    words = " ".join(answers).split(" ")

    def with_words(count: int) -> Prompt:
        content = " ".join(["Notes:", *words[:count], "\n\n" + prompt.text])
        return replace(prompt, messages=({"role": "user", "content": content},))

    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(encode_prompt(tokenizer, with_words(middle))) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return with_words(low)
