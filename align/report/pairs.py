"""Arm against arm at the end of training: every trained arm against the first; all pairs where there are few."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from align.report.arms import Arm
from align.report.claims import Claim, judged
from align.report.csvs import as_csv
from align.report.metrics import (
    GOLD,
    GREEDY,
    LENGTH,
    PROXY,
    REP3,
    SAMPLED,
    TRUNCATED,
    WIN,
    WIN_LC,
    Metric,
    end_difference,
    ends,
    same_reward,
)
from align.report.stats import Estimate, at_step

COLUMNS = ("arm", "other", "metric", "arm end", "other end", "difference", "low", "high", "p", "p holm", "verdict",
           "seeds", "prompts", "paired", "by")  # fmt: skip
ALL_PAIRS = 4  # with more arms, pairs among them would drown the family in tests that nobody asked for


@dataclass(frozen=True)
class Row:
    claim: Claim
    ends: tuple[Estimate | None, Estimate | None]  # of the arm and of the other


@dataclass(frozen=True)
class Pair:
    """`arm` minus `other`, at the end of each."""

    arm: Arm
    other: Arm
    rows: tuple[Row, ...]

    @property
    def decided(self) -> int:
        return sum(row.claim.decided for row in self.rows)

    def claim(self, metric: Metric) -> Claim | None:
        return next((row.claim for row in self.rows if row.claim.metric == metric), None)


def pairs(arms: Sequence[Arm], kl: Metric) -> list[Pair]:
    """Every row of every pair, judged together (claims.py)."""
    named = _named([arm for arm in arms if arm.trained])
    family = {
        (n, metric): (metric, end_difference(arm, other, metric))
        for n, (arm, other) in enumerate(named)
        for metric in _metrics(kl)
        if metric != PROXY or same_reward((arm, other))
    }
    claims = judged(family)
    found = []
    for n, (arm, other) in enumerate(named):
        end, others = ends(arm, other)
        rows = [
            Row(claim, (at_step(arm, end, metric.key), at_step(other, others, metric.key)))
            for metric in _metrics(kl)
            if (claim := claims.get((n, metric)))
        ]
        found.append(Pair(arm, other, tuple(rows)))
    return [pair for pair in found if pair.rows]


def _named(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    if len(arms) <= ALL_PAIRS:
        return [(arm, other) for other, arm in itertools.combinations(arms, 2)]
    return [(arm, arms[0]) for arm in arms[1:]]


def _metrics(kl: Metric) -> tuple[Metric, ...]:
    return GOLD, SAMPLED, GREEDY, PROXY, WIN, WIN_LC, kl, LENGTH, TRUNCATED, REP3


def to_csv(found: Sequence[Pair]) -> str:
    """One line per row of the table."""
    rows = []
    for pair in found:
        for row in pair.rows:
            d, ends = row.claim.difference, [end and end.mean for end in row.ends]
            rows.append((pair.arm.label, pair.other.label, row.claim.metric.key, *ends, d.mean, d.low, d.high, d.p,
                         row.claim.p, row.claim.verdict, d.seeds, d.prompts, d.paired, d.by))  # fmt: skip
    return as_csv((dict(zip(COLUMNS, row, strict=True)) for row in rows), COLUMNS)
