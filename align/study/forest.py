"""The figure of a verdict: contrasts below each other on one axis, with interval, seeds, zero and margin.

Drawn as one <svg> to a row whose lengths are per cent of its width, under text that is text: readable on a telephone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.report.metrics import Metric
from align.study.judged import Judged

APART = 14.0  # per cent of the width between two numbers of the axis: a telephone's has room for no more


@dataclass(frozen=True)
class Row:
    """Places in per cent of the width. What is None is not drawn."""

    judged: Judged
    style: int  # the look of the arm that is compared
    mean: float | None
    low: float | None
    high: float | None
    seeds: tuple[tuple[str, float], ...]  # what hovering says, place
    margin: tuple[float, float]  # from -margin to margin, of this contrast's own


@dataclass(frozen=True)
class Forest:
    metric: Metric
    rows: tuple[Row, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]


def forest(judged: Sequence[Judged], styles: Sequence[int]) -> Forest:
    """All contrasts of one metric; the axis holds every interval, seed and margin."""
    metric, margins = judged[0].metric, [one.verdict.margin or 0.0 for one in judged]
    margin = margins[0]
    edges = [0.0, *margins, *(-m for m in margins)]
    for one in judged:
        edges += [value for value in (one.verdict.low, one.verdict.high, one.verdict.effect) if value is not None]
        edges += one.by_seed.values()
    low, high = min(edges), max(edges)
    pad = 0.04 * ((high - low) or 1.0)
    low, high = low - pad, high + pad

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    rows = tuple(
        Row(one, style, place(one.verdict.effect), place(one.verdict.low), place(one.verdict.high),
            tuple((f"seed {seed}: {metric.show(d, sign=True)}", place(d) or 0.0) for seed, d in one.by_seed.items()),
            (place(-own) or 0.0, place(own) or 0.0))
        for one, style, own in zip(judged, styles, margins, strict=True)
    )  # fmt: skip
    ticks: list[tuple[float, str]] = []
    for value in (0.0, max(edges), min(edges), margin, -margin):  # the first of two that would lie on each other
        at = place(value) or 0.0
        if all(abs(at - other) >= APART for other, _ in ticks):
            ticks.append((at, metric.show(value, sign=True)))
    return Forest(metric, rows, place(0.0) or 0.0, tuple(ticks))
