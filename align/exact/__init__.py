"""Studies that need no training: what a formula of `align` says, computed exactly and held against the literature.

Each module here has `compute() -> Exact`: seconds, deterministic, float64, with expectations by enumeration or
quadrature and the product's own functions in them. torch is imported by what computes, so that reading is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


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
class Panel:
    """Columns of a table as they are: lines of `y` over `x`, or bars where `x` holds words.

    Each value of the column `by` has a colour, and a second column of `y` is dashed; without `by` each column has a
    colour.
    """

    title: str
    table: str
    x: str
    y: Mapping[str, str]  # columns -> what the legend says of them
    labels: tuple[str, str]  # of x and y
    by: str = ""
    names: Mapping[float | str, str] = field(
        default_factory=dict
    )  # what is drawn, in order, and its name: values of `by`, or words
    where: Mapping[str, float | str] = field(default_factory=dict)  # of which rows
    log: str = ""  # axes with a logarithmic scale: "", "x", "y" or "xy"


@dataclass(frozen=True)
class Figure:
    """What there is to see, in panels side by side; `align/study/panels.py` draws it."""

    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Exact:
    """What a study found: its checks, tables, and the figure that is drawn from them."""

    checks: tuple[Check, ...]
    tables: dict[str, list[dict[str, float | str]]]
    figure: Figure | None = None


def furthest(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of pairs (expected, found), the one that is furthest apart: one check for a whole curve."""
    return max(pairs, key=lambda pair: abs(pair[1] - pair[0]))


def relative(name: str, expected: float, found: float, within: float, source: str) -> Check:
    """A check whose tolerance is a share of what is expected."""
    return Check(name, expected, float(found), within * abs(expected), source)
