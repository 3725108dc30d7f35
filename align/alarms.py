"""Alarms: declared rules over the rows of metrics.jsonl. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alarm:
    """The first row at which a rule holds."""

    step: int
    kind: str
    what: str


def alarms(rows: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """Placeholder until the rules are written."""
    return []
