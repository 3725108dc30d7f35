"""Data from the user's own .jsonl file (see rows.py for the three formats). A bad file is refused whole.

The file is streamed. A prompt is on one side of the split only, decided by the hash of its text; letter case and
spacing do not make another prompt of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.dataset import Data, digest, dropped, text_hash
from align.data.errors import DataError
from align.data.lines import objects
from align.data.rows import FORMATS, Row, format_of, parse
from align.data.tokens import encode_completion, encode_prompt
from align.records import Demonstration, PreferencePair, Prompt
from reward_models.verifiers import last_integer


@dataclass(frozen=True)
class Example:
    """A row with its prompt record."""

    prompt: Prompt
    row: Row


def load(cfg: Any, tokenizer: Any | None) -> Data:
    """Data of `cfg` (path, heldout, max_prompt_tokens, max_completion_tokens). The limits need a tokenizer.

    Raises DataError naming file, line, field, what was found and what was expected.
    """
    path = Path(cfg.path)
    content = hashlib.sha256()
    unread: set[str] = set()
    examples = list(_examples(path, content, unread))
    if not examples:
        raise DataError(f"data.path={path}: the file is empty; expected one JSON object per line")
    kept, notes = _short_enough(cfg, tokenizer, examples)
    if unread:
        notes.append(f"fields that are not read: {', '.join(sorted(unread))}")
    if not kept:
        raise DataError(
            f"data.path={path}: all {len(examples)} lines are longer than the limits; raise "
            f"data.max_prompt_tokens or data.max_completion_tokens ({'; '.join(notes)})"
        )
    heldout = _heldout(path, kept, cfg.heldout)
    train = [example for example in kept if example.prompt.id not in heldout]
    held = [example for example in kept if example.prompt.id in heldout]
    options = [cfg.heldout, cfg.max_prompt_tokens, cfg.max_completion_tokens]
    return Data(
        name=cfg.name,
        train_prompts=_distinct(train),
        heldout_prompts=_distinct(held),
        train_pairs=_pairs(train),
        heldout_pairs=_pairs(held),
        demonstrations=tuple(Demonstration(e.prompt, e.row.texts[0]) for e in train if e.row.format != "preference"),
        verifier=last_integer if examples[0].row.format == "question" else None,
        gold=None,
        # The lines kept too: the limits count tokens, so another tokenizer may keep others.
        fingerprint=digest([content.hexdigest(), options, [example.row.place.line for example in kept]]),
        notes=tuple(notes),
    )


def _examples(path: Path, content: Any, unread: set[str]) -> Iterator[Example]:
    """Every line, checked. All are of the first one's format, and a question has one answer."""
    first: tuple[str, int] | None = None
    answers: dict[str, tuple[int | None, int]] = {}
    for place, fields in objects(path, content.update):
        name = format_of(place, fields)
        if first is None:
            first = name, place.line
        if name != first[0]:
            expected = f"a {first[0]} ({', '.join(FORMATS[first[0]])}) as in line {first[1]}: one format per file"
            raise place.error(None, f"a {name} ({', '.join(FORMATS[name])})", expected)
        unread |= set(fields) - set(FORMATS[name])
        row = parse(place, fields, name)
        prompt = _prompt(row)
        if name == "question":
            answer, line = answers.setdefault(prompt.id, (row.answer, place.line))
            if answer != row.answer:
                expected = f"{answer}, the answer to the same question in line {line}"
                raise place.error("answer", str(row.answer), expected)
        yield Example(prompt, row)


def _prompt(row: Row) -> Prompt:
    plain = [[turn["role"], " ".join(turn["content"].split()).casefold()] for turn in row.messages]
    key = digest(plain)
    info = {"answer": row.answer} if row.answer is not None else {}
    return Prompt(key[:16], row.messages, key, info)


def _heldout(path: Path, examples: Sequence[Example], share: float) -> set[str]:
    """Ids of the held-out prompts: the `share` of prompts whose hash ranks first, at least one."""
    if not 0 < share < 1:
        raise DataError(f"data.heldout={share}: must be a share of the prompts, between 0 and 1")
    ids = sorted({example.prompt.id for example in examples}, key=text_hash)
    if len(ids) < 2:
        raise DataError(f"data.path={path}: only one distinct prompt; two are needed, one to train on and one held out")
    return set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])


def _short_enough(cfg: Any, tokenizer: Any | None, examples: list[Example]) -> tuple[list[Example], list[str]]:
    """The examples within the limits, and a note per limit. Too long ones are dropped whole, never cut."""
    notes: list[str] = []
    for key in ("max_prompt_tokens", "max_completion_tokens"):
        limit = getattr(cfg, key)
        if limit is None:
            continue
        if tokenizer is None:
            raise DataError(f"data.{key}={limit}: needs a tokenizer to count with; set it to null")
        lengths = [_tokens(key, tokenizer, example) for example in examples]
        lost = [n for n in lengths if n > limit]
        notes.append(dropped(f"data.{key}={limit}", lost, [n for n in lengths if n <= limit]))
        examples = [example for example, n in zip(examples, lengths, strict=True) if n <= limit]
    return examples, notes


def _tokens(key: str, tokenizer: Any, example: Example) -> int:
    """Tokens of the prompt, or of the longest completion with its EOS."""
    if key == "max_prompt_tokens":
        return len(encode_prompt(tokenizer, example.prompt))
    return max(len(encode_completion(tokenizer, text)) for text in example.row.texts)


def _distinct(examples: Sequence[Example]) -> tuple[Prompt, ...]:
    """Each prompt once, where it stands first."""
    prompts: dict[str, Prompt] = {}
    for example in examples:
        prompts.setdefault(example.prompt.id, example.prompt)
    return tuple(prompts.values())


def _pairs(examples: Sequence[Example]) -> tuple[PreferencePair, ...]:
    return tuple(PreferencePair(e.prompt, *e.row.texts) for e in examples if e.row.format == "preference")
