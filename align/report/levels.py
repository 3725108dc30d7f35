"""Arms at the same KL, and after the same number of generated tokens: values between probes, never beyond them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from align.report import matched
from align.report.arms import TEMPERED, Arm, SeedRun
from align.report.claims import Claim, judged
from align.report.csvs import as_csv
from align.report.inference import seed_difference
from align.report.metrics import GOLD, LENGTH, PROXY, SAMPLED, TOKENS, Metric, kl_of, same_reward
from align.report.stats import Estimate, t_interval

COLUMNS = ("axis", "level", "arm", "metric", "mean", "low", "high", "seeds", "arm reaches", "against", "difference",
           "difference low", "difference high", "p", "p holm", "verdict")  # fmt: skip
AxisOf = Callable[[Arm], Metric]  # best-of-n has another KL than the rest
VALUES = (GOLD, SAMPLED, PROXY, LENGTH)


@dataclass(frozen=True)
class Cell:
    value: Estimate | None  # None where no seed of the arm gets to the level
    claim: Claim | None  # against the first arm at this level


@dataclass(frozen=True)
class Row:
    arm: Arm
    cells: Mapping[str, Cell]  # metric key -> cell
    seeds: int  # that get to the level
    reach: float | None  # how far the arm gets: the most that all of its seeds reach

    @property
    def missing(self) -> str:
        """ "1 of 3 seeds gets there", or nothing where all do."""
        there, all_seeds = self.seeds, len(self.arm.at_end)
        return "" if there == all_seeds else f"{there} of {all_seeds} seeds get there"


@dataclass(frozen=True)
class Level:
    axis: Metric
    at: float
    rows: tuple[Row, ...]
    against: str  # the arm that differences are taken from

    @property
    def says(self) -> str:
        """ "KL to the reference, exact = 0.82 nats per sequence"."""
        unit = f" {self.axis.unit}" if self.axis.unit else ""
        return f"{self.axis.title} = {self.axis.show(self.at)}{unit}"


@dataclass(frozen=True)
class Matched:
    """All levels of one axis, their differences judged together (claims.py)."""

    axis: Metric
    metrics: tuple[Metric, ...]
    levels: tuple[Level, ...]


def at_matched_kl(arms: Sequence[Arm], kl: Metric) -> Matched:
    return _matched(arms, kl, lambda arm: kl_of(arm, kl))


def at_matched_tokens(arms: Sequence[Arm]) -> Matched:
    return _matched([arm for arm in arms if arm.trained], TOKENS, lambda _: TOKENS)


def paths(arm: Arm, x: Metric, y: Metric) -> dict[str, list[tuple[float, float]]]:
    """Seed -> (x, y) at each probe that has both, of the seeds that reached the arm's end. For matched.py."""
    found = {str(run.seed): _path(arm, run, x, y) for run in arm.at_end}
    return {seed: path for seed, path in found.items() if path}


def _path(arm: Arm, run: SeedRun, x: Metric, y: Metric) -> list[tuple[float, float]]:
    steps = sorted(run.probes)
    if arm.kind == TEMPERED:  # sharpening: from temperature 1 down
        sharpness = {step: run.sharpness(step) for step in steps}
        steps = sorted((s for s in steps if 0 < sharpness[s][0] <= 1), key=sharpness.__getitem__, reverse=True)
    pairs = ((run.value(step, x.key), run.value(step, y.key)) for step in steps)
    return [(across, up) for across, up in pairs if across is not None and up is not None]


def _levels(arms: Sequence[Arm], axis_of: AxisOf) -> list[float]:
    """Half-way and all the way to where all trained arms get that move at all, and where only the furthest two get."""
    own = [paths(arm, axis_of(arm), axis_of(arm)) for arm in arms if arm.trained]
    moved = [arm for arm in own if arm and all(max(x for x, _ in path) > path[0][0] for path in arm.values())]
    reach = sorted(min(max(x for x, _ in path) for path in arm.values()) for arm in moved)
    return sorted({*matched.levels(moved), *reach[-2:-1]}) if len(moved) > 1 else []


def _matched(arms: Sequence[Arm], axis: Metric, axis_of: AxisOf) -> Matched:
    metrics = tuple(m for m in VALUES if any(arm.logs(m.key) for arm in arms if arm.trained))
    found = {
        (level, n, m): matched.values_at(paths(arm, axis_of(arm), m), level)
        for level in _levels(arms, axis_of) for n, arm in enumerate(arms) for m in metrics
    }  # fmt: skip
    first = next((n for n, arm in enumerate(arms) if arm.trained), 0)
    claims = judged({
        (level, n, m): (m, seed_difference(values, found[level, first, m]))
        for (level, n, m), values in found.items()
        if n != first and (m != PROXY or same_reward((arms[n], arms[first])))
    })  # fmt: skip
    levels = []
    for level in dict.fromkeys(level for level, _, _ in found):
        rows = []
        for n, arm in enumerate(arms):
            cells = {m.key: Cell(_mean(found[level, n, m]), claims.get((level, n, m))) for m in metrics}
            own = [max(x for x, _ in path) for path in paths(arm, axis_of(arm), axis_of(arm)).values()]
            there = max((len(found[level, n, m]) for m in metrics), default=0)
            rows.append(Row(arm, cells, there, min(own, default=None)))
        levels.append(Level(axis, level, tuple(rows), arms[first].label))
    return Matched(axis, metrics, tuple(levels))


def _mean(values: Mapping[str, float]) -> Estimate | None:
    return t_interval(list(values.values())) if values else None


def to_csv(tables: Sequence[Matched]) -> str:
    rows = []
    for table in tables:
        for level in table.levels:
            for row in level.rows:
                for key, cell in row.cells.items():
                    v, d = cell.value, cell.claim and cell.claim.difference
                    rows.append((table.axis.key, level.at, row.arm.label, key, v and v.mean, v and v.low,
                                 v and v.high, v and v.n, row.reach, level.against if d else None, d and d.mean,
                                 d and d.low, d and d.high, d and d.p, cell.claim and cell.claim.p,
                                 cell.claim and cell.claim.verdict))  # fmt: skip
    return as_csv((dict(zip(COLUMNS, row, strict=True)) for row in rows), COLUMNS)
