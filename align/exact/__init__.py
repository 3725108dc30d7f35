"""Studies that need no training: what a formula of `align` says, computed exactly and held against the literature.

Each module here has `compute() -> Exact`: seconds, deterministic, float64, with expectations by enumeration or
quadrature and the product's own functions in them. torch is imported by what computes, so that reading is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A number that is known beforehand and the same number as found. NaN holds nothing."""

    name: str
    expected: float
    found: float
    tolerance: float  # absolute
    source: str

    @property
    def holds(self) -> bool:
        return abs(self.found - self.expected) <= self.tolerance


@dataclass(frozen=True)
class Exact:
    """What a study found: its checks, and tables that a figure can be drawn from."""

    checks: tuple[Check, ...]
    tables: dict[str, list[dict[str, float | str]]]


def furthest(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of pairs (expected, found), the one that is furthest apart: one check for a whole curve."""
    return max(pairs, key=lambda pair: abs(pair[1] - pair[0]))


def relative(name: str, expected: float, found: float, within: float, source: str) -> Check:
    """A check whose tolerance is a share of what is expected."""
    return Check(name, expected, float(found), within * abs(expected), source)
