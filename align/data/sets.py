"""Data from a set of the hub (sources.py says where it may lie): preference pairs, or questions with an answer.

Its own test split is the held-out side. A prompt that stands there is not trained on; of the rest, a hash draws as
many as asked for. A row that does not fit is left out and counted: unlike a file of their own, users cannot mend it.
Of a split, only the rows that are drawn are ever held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from align.data.dataset import Data, digest, text_hash
from align.data.errors import DataError, RowError
from align.data.examples import Example, Limits, Reader, as_demonstration, distinct, pairs
from align.data.lines import Place
from align.data.rows import format_of
from align.data.sources import open_source
from reward_models.verifiers import last_integer


def load(cfg: Any, tokenizer: Any | None, seed: int) -> Data:
    """Data of `cfg` (besides sources.py's fields: train, heldout, max_prompt_tokens, max_completion_tokens).

    seed   draws the training prompts, where there are more than asked for. Raises DataError.
    """
    source = open_source(cfg)
    limits, notes = Limits(cfg, tokenizer), [source.note]
    whole = source.heldout is None
    train = Split(source.name if whole else f"{source.name}, split {cfg.train_split}", source.train)
    notes.append(f"{cfg.train_split}: {train.note}")
    if whole:
        held = train.take(sorted(train.prompts, key=text_hash), cfg.heldout, limits)
        seen = {example.prompt.id for example in held}
        notes.append(f"no split {cfg.heldout_split}: {len(seen)} prompts of the only one are held out, by their hash")
    else:
        test = Split(f"{source.name}, split {cfg.heldout_split}", source.heldout)
        held = test.take(sorted(test.prompts, key=text_hash), cfg.heldout, limits)
        seen = set(test.prompts)
        twice = f"{len(seen & set(train.prompts))} of {len(train.prompts)}"
        notes.append(f"{cfg.heldout_split}: {test.note}")
        notes.append(f"prompts of {cfg.train_split} that are in {cfg.heldout_split} too: dropped {twice}")
    left = sorted(train.prompts.keys() - seen, key=lambda prompt: text_hash(f"{seed}/{prompt}"))
    kept = train.take(left, cfg.train, limits)
    notes += limits.notes()
    for what, examples in (("data.heldout", held), ("data.train", kept)):
        if not examples:
            raise DataError(f"{what}: {source.name} leaves no prompt for it ({'; '.join(notes)})")
    notes += [f"data.heldout={cfg.heldout}: {len(distinct(held))} prompts",
              f"data.train={'null' if cfg.train is None else cfg.train}: {len(distinct(kept))} prompts"]  # fmt: skip
    return Data(
        name=cfg.name,
        train_prompts=distinct(kept),
        heldout_prompts=distinct(held),
        train_pairs=pairs(kept),
        heldout_pairs=pairs(held),
        demonstrations=tuple(as_demonstration(example) for example in kept),
        verifier=last_integer if train.reader.name == "question" else None,
        gold=None,
        fingerprint=digest([cfg.revision, len(kept), _content([*kept, *held])]),
        notes=tuple(notes),
    )


class Split:
    """A table whose rows are read when they are asked for; it knows which of them fit, by prompt."""

    def __init__(self, name: str, table: Any):
        self.name, self.table = name, table
        self.reader = Reader(format_of(Place(name, 1, "row"), dict.fromkeys(table.column_names)))
        self.prompts: dict[str, list[int]] = {}  # id -> numbers of its rows
        unfit: Counter[str] = Counter()
        first: RowError | None = None
        for number, fields in enumerate(table):
            try:
                self.prompts.setdefault(self._example(number, fields).prompt.id, []).append(number)
            except RowError as error:
                unfit[error.expected] += 1
                first = first or error
        if not self.prompts:
            raise DataError(f"{name}: no row fits; {first}" if first else f"{name}: it is empty")
        self.note = f"dropped {unfit.total()} of {len(table)} rows that do not fit" + _listed(unfit)

    def take(self, ranked: Iterable[str], count: int | None, limits: Limits) -> list[Example]:
        """Examples within the limits of the first `count` prompts that have any; None: of all."""
        taken: list[Example] = []
        prompts = 0
        for prompt in ranked:
            if prompts == count:
                break
            rows = [self._example(number, self.table[number]) for number in self.prompts[prompt]]
            fitting = [example for example in rows if limits.keep(example)]
            taken += fitting
            prompts += bool(fitting)
        return taken

    def _example(self, number: int, fields: dict[str, Any]) -> Example:
        # a plain text begins with the space that a raw concatenation needs (tldr); a transcript's turns are cut out
        plain = {
            key: text.strip() if isinstance(text, str) and not text.startswith("\n\nHuman:") else text
            for key, text in fields.items()
        }
        return self.reader.read(Place(self.name, number + 1, "row"), plain)


def _listed(unfit: Counter[str]) -> str:
    """What was expected and not found, how often."""
    parts = [f"{count}: expected {expected}" for expected, count in sorted(unfit.items())]
    return f" ({'; '.join(parts)})" if parts else ""


def _content(examples: Sequence[Example]) -> str:
    found = hashlib.sha256()
    for e in examples:
        found.update(json.dumps([e.row.messages, e.row.texts, e.row.answer], sort_keys=True).encode())
    return found.hexdigest()
