"""What every kind of data becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.stored import Stored
from align.records import Demonstration, PreferencePair, Prompt
from reward_models.base import RewardSource


@dataclass(frozen=True)
class Data:
    """Prompts, pairs and demonstrations, already split. A topic is on one side only; this is asserted."""

    name: str
    train_prompts: Sequence[Prompt]
    heldout_prompts: Sequence[Prompt]  # what the probe asks
    train_pairs: Sequence[PreferencePair]
    heldout_pairs: Sequence[PreferencePair]
    demonstrations: Sequence[Demonstration]  # of training prompts
    verifier: RewardSource | None
    gold: RewardSource | None
    fingerprint: str  # equal fingerprint, equal data
    notes: tuple[str, ...]  # one line per filter: what it dropped, how many, how long they were

    def __post_init__(self) -> None:
        held = {topic for records in (self.heldout_prompts, self.heldout_pairs) for topic in _topics(records)}
        train = (self.train_prompts, self.train_pairs, self.demonstrations)
        shared = sorted({topic for records in train for topic in _topics(records) if topic in held})
        assert not shared, f"{self.name}: {len(shared)} topics on both sides of the split, e.g. {shared[0]!r}"


def _topics(records: Sequence[Any]) -> Iterable[str]:
    if isinstance(records, Stored):
        return records.topics
    return (record.topic if isinstance(record, Prompt) else record.prompt.topic for record in records)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 of a text: what decides splits."""
    return hashlib.sha256(text.encode()).hexdigest()


def dropped(what: str, lost: Sequence[float], kept: Sequence[float]) -> str:
    """The note of a filter: how many it dropped, and how long they were beside what it kept."""
    total = len(lost) + len(kept)
    line = f"{what}: dropped {len(lost)} of {total}"
    if not lost:
        return line
    beside = f" against {sum(kept) / len(kept):.1f} kept" if kept else ""
    return f"{line} (mean {sum(lost) / len(lost):.1f} tokens{beside})"
