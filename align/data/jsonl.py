"""Data from the user's own .jsonl file (see rows.py for the three formats). A bad file is refused whole.

The file is read once, line by line, and what training or probe asks for is read again when it is asked for: of a line
only its place and its prompt's id are held. A prompt is on one side of the split only, decided by the hash of its text;
letter case and spacing do not make another prompt of it.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.data.dataset import Data, digest, text_hash
from align.data.errors import DataError
from align.data.examples import Example, Limits, Reader, as_demonstration, as_pair
from align.data.lines import Place, line_at, listed, objects
from align.data.rows import FORMATS, format_of
from align.data.stored import Stored, first_of_each, prompt_id
from reward_models.verifiers import last_integer


def load(cfg: Any, tokenizer: Any | None) -> Data:
    """Data of `cfg` (path, heldout, max_prompt_tokens, max_completion_tokens). The limits need a tokenizer.

    Raises DataError naming file, line, field, what was found and what was expected.
    """
    path, limits = Path(cfg.path).expanduser(), Limits(cfg, tokenizer)
    file = _Examples(path)
    for example in file.every():
        if limits.keep(example):
            file.keep(example)
    if not file.count:
        raise DataError(f"data.path={path}: the file is empty; expected one JSON object per line")
    notes = limits.notes()
    if file.unread:
        notes.append(f"fields that are not read: {listed(file.unread)}")
    if not file.lines:
        raise DataError(
            f"data.path={path}: all {file.count} lines are longer than the limits; raise "
            f"data.max_prompt_tokens or data.max_completion_tokens ({'; '.join(notes)})"
        )
    ids = np.array(file.ids, np.uint64)
    held = np.isin(ids, _heldout(path, ids, cfg.heldout))
    preference = file.reader.name == "preference"

    def stored(chosen: NDArray[np.int64], make: Any) -> Any:
        return Stored(file.read, chosen, ids[chosen], make)

    train, rest = np.flatnonzero(~held), np.flatnonzero(held)
    options = [cfg.heldout, cfg.max_prompt_tokens, cfg.max_completion_tokens]
    return Data(
        name=cfg.name,
        train_prompts=stored(train[first_of_each(ids[train])], lambda example: example.prompt),
        heldout_prompts=stored(rest[first_of_each(ids[rest])], lambda example: example.prompt),
        train_pairs=stored(train, as_pair) if preference else (),
        heldout_pairs=stored(rest, as_pair) if preference else (),
        demonstrations=() if preference else stored(train, as_demonstration),
        verifier=last_integer if file.reader.name == "question" else None,
        gold=None,
        # The lines kept too: the limits count tokens, so another tokenizer may keep others.
        fingerprint=digest([file.content.hexdigest(), options, file.lines.tolist()]),
        notes=tuple(notes),
    )


MOST_UNREAD = 1000  # names that are kept to be told of: every line may have others


class _Examples:
    """A file's examples, and where those stand that are kept: 24 bytes of each."""

    def __init__(self, path: Path):
        self.path, self.content, self.unread = path, hashlib.sha256(), set[str]()
        self.count = 0
        self.starts, self.lines, self.ids = array("q"), array("q"), array("Q")
        self.reader = Reader("")  # until the first line says which
        self.seen: tuple[int, ...] | None = None

    def every(self) -> Iterator[Example]:
        """Every line, checked. All are of the first one's format, and a question has one answer."""
        first = 0
        for place, fields in objects(self.path, self.content.update):
            name = format_of(place, fields)
            if not first:
                first, self.reader, self.seen = place.line, Reader(name), _state(self.path)
            if name != self.reader.name:
                known = self.reader.name
                expected = f"a {known} ({', '.join(FORMATS[known])}) as in line {first}: one format per file"
                raise place.error(None, f"a {name} ({', '.join(FORMATS[name])})", expected)
            if len(self.unread) < MOST_UNREAD:
                self.unread |= set(fields) - set(FORMATS[name])
            self.count += 1
            yield self.reader.read(place, fields)

    def keep(self, example: Example) -> None:
        self.starts.append(example.row.place.start)
        self.lines.append(example.row.place.line)
        self.ids.append(int(example.prompt.id, 16))

    def read(self, i: int) -> Example:
        """The i-th that was kept. Raises DataError where the file is not what it was."""
        if _state(self.path) != self.seen:
            raise DataError(f"data.path={self.path}: it has changed since this run began to read it; start again, and "
                            "leave it alone while a run reads it")  # fmt: skip
        return self.reader.read(*line_at(Place(self.path, self.lines[i], start=self.starts[i])))


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns  # a folder mounted from elsewhere may number its files anew


def _heldout(path: Path, ids: NDArray[np.uint64], share: float) -> NDArray[np.uint64]:
    """Ids of the held-out prompts: the `share` of prompts whose hash ranks first, at least one."""
    if not 0 < share < 1:
        raise DataError(f"data.heldout={share}: must be a share of the prompts, between 0 and 1")
    distinct = np.unique(ids)
    if len(distinct) < 2:
        raise DataError(f"data.path={path}: only one distinct prompt; two are needed, one to train on and one held out")
    hashes = (int(text_hash(prompt_id(one))[:16], 16) for one in distinct)
    ranked = distinct[np.argsort(np.fromiter(hashes, np.uint64, len(distinct)), kind="stable")]
    return ranked[: min(max(1, round(share * len(distinct))), len(distinct) - 1)]
