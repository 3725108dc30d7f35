"""Data from the user's own .jsonl file (see rows.py for the three formats). A bad file is refused whole.

The file is streamed. A prompt is on one side of the split only, decided by the hash of its text; letter case and
spacing do not make another prompt of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.data.dataset import Data, digest, text_hash
from align.data.errors import DataError
from align.data.examples import Example, Limits, Reader, distinct, pairs
from align.data.lines import listed, objects
from align.data.rows import FORMATS, format_of
from align.records import Demonstration
from reward_models.verifiers import last_integer


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
    limits = Limits(cfg, tokenizer)
    kept = [example for example in examples if limits.keep(example)]
    notes = limits.notes()
    if unread:
        notes.append(f"fields that are not read: {listed(unread)}")
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
        train_prompts=distinct(train),
        heldout_prompts=distinct(held),
        train_pairs=pairs(train),
        heldout_pairs=pairs(held),
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
    for place, fields in objects(path, content.update):
        name = format_of(place, fields)
        if first is None:
            first, reader = (name, place.line), Reader(name)
        if name != first[0]:
            expected = f"a {first[0]} ({', '.join(FORMATS[first[0]])}) as in line {first[1]}: one format per file"
            raise place.error(None, f"a {name} ({', '.join(FORMATS[name])})", expected)
        unread |= set(fields) - set(FORMATS[name])
        yield reader.read(place, fields)


def _heldout(path: Path, examples: Sequence[Example], share: float) -> set[str]:
    """Ids of the held-out prompts: the `share` of prompts whose hash ranks first, at least one."""
    if not 0 < share < 1:
        raise DataError(f"data.heldout={share}: must be a share of the prompts, between 0 and 1")
    ids = sorted({example.prompt.id for example in examples}, key=text_hash)
    if len(ids) < 2:
        raise DataError(f"data.path={path}: only one distinct prompt; two are needed, one to train on and one held out")
    return set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])
