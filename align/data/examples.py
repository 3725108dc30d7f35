"""Rows with their prompts, and the limits on their lengths: what a user's file and a set of the hub have in common."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.dataset import digest, dropped
from align.data.errors import DataError
from align.data.lines import Place
from align.data.rows import Row, parse
from align.data.tokens import encode_completion, encode_prompt
from align.records import Demonstration, PreferencePair, Prompt


@dataclass(frozen=True)
class Example:
    """A row with its prompt record."""

    prompt: Prompt
    row: Row


class Reader:
    """Rows of one format as examples. Raises DataError for one that does not fit, also with the rows before it."""

    def __init__(self, name: str):
        self.name = name
        self.answers: dict[str, tuple[int | None, int]] = {}  # of questions: the answer, and where it stands

    def read(self, place: Place, fields: Mapping[str, Any]) -> Example:
        row = parse(place, fields, self.name)
        prompt = _prompt(row)
        if self.name == "question":
            answer, line = self.answers.setdefault(prompt.id, (row.answer, place.line))
            if answer != row.answer:
                expected = f"{answer}, the answer to the same question in {place.unit} {line}"
                raise place.error(
                    "answer", str(row.answer), expected, "the answer that the same question has elsewhere"
                )
        return Example(prompt, row)


def _prompt(row: Row) -> Prompt:
    """Letter case and spacing do not make another prompt."""
    plain = [[turn["role"], " ".join(turn["content"].split()).casefold()] for turn in row.messages]
    key = digest(plain)
    info = {"answer": row.answer} if row.answer is not None else {}
    return Prompt(key[:16], row.messages, key, info)


class Limits:
    """data.max_prompt_tokens and data.max_completion_tokens. Too long examples are dropped whole, never cut."""

    KEYS = ("max_prompt_tokens", "max_completion_tokens")

    def __init__(self, cfg: Any, tokenizer: Any | None):
        self.limits = {key: getattr(cfg, key) for key in self.KEYS if getattr(cfg, key) is not None}
        for key, limit in self.limits.items():
            if tokenizer is None:
                raise DataError(f"data.{key}={limit}: needs a tokenizer to count with; set it to null")
        self.tokenizer = tokenizer
        self.lengths = {key: array("i") for key in self.limits}

    def keep(self, example: Example) -> bool:
        for key, limit in self.limits.items():
            self.lengths[key].append(_tokens(key, self.tokenizer, example))
            if self.lengths[key][-1] > limit:
                return False
        return True

    def notes(self) -> list[str]:
        """A line per limit, of all examples that it has seen."""
        return [
            dropped(f"data.{key}={limit}", [n for n in lengths if n > limit], [n for n in lengths if n <= limit])
            for (key, limit), lengths in zip(self.limits.items(), self.lengths.values(), strict=True)
        ]


def _tokens(key: str, tokenizer: Any, example: Example) -> int:
    """Tokens of the prompt, or of the longest completion with its EOS."""
    if key == "max_prompt_tokens":
        return len(encode_prompt(tokenizer, example.prompt))
    return max(len(encode_completion(tokenizer, text)) for text in example.row.texts)


def distinct(examples: Sequence[Example]) -> tuple[Prompt, ...]:
    """Each prompt once, where it stands first."""
    prompts: dict[str, Prompt] = {}
    for example in examples:
        prompts.setdefault(example.prompt.id, example.prompt)
    return tuple(prompts.values())


def pairs(examples: Sequence[Example]) -> tuple[PreferencePair, ...]:
    return tuple(as_pair(e) for e in examples if e.row.format == "preference")


def as_pair(example: Example) -> PreferencePair:
    return PreferencePair(example.prompt, *example.row.texts)


def as_demonstration(example: Example) -> Demonstration:
    """Of a preference, what was chosen."""
    return Demonstration(example.prompt, example.row.texts[0])
