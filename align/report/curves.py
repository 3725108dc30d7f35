"""Curves: an arm's mean at each probed step, and every seed's own line. `gallery.py` says which figures there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from align.report.arms import Arm, SeedRun
from align.report.metrics import STEP, Metric
from align.report.stats import Estimate, t_interval
from align.report.text import number

CROWDED = 6  # with more arms, intervals, single seeds and marks hide more than they show
Of = Callable[[Arm, SeedRun, int], float | None]


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and what it is for one run at one step."""

    metric: Metric
    of: Of


@dataclass(frozen=True)
class Point:
    step: int
    x: Estimate
    y: Estimate
    hover: str
    tag: str = ""  # written beside it: "n=4"


@dataclass(frozen=True)
class Curve:
    """One arm: the mean at each probed step over the seeds that reached its end, and every seed's own line."""

    label: str
    style: int  # the arm's look in every figure
    variant: int  # 1: the second quantity of a figure that shows two, hollow and dashed
    points: tuple[Point, ...]
    seeds: tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True)
class Mark:
    """The first step at which an alarm fired in some seed of an arm."""

    step: int
    style: int
    hover: str


@dataclass(frozen=True)
class Figure:
    name: str  # of its files
    group: str  # the heading it stands under
    title: str
    caption: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    variants: tuple[str, ...] = ()  # what curves of variant 0 and 1 are, where there are two
    marks: tuple[Mark, ...] = ()
    zero: bool = False  # draw the line y = 0

    @property
    def by_step(self) -> bool:
        return self.x_label == STEP.title

    @property
    def plane(self) -> bool:
        """A path through a plane (reward against KL), as opposed to a function of what only grows."""
        return self.x_label.startswith("KL")

    @property
    def crowded(self) -> bool:
        return len({curve.style for curve in self.curves}) > CROWDED


def of(metric: Metric) -> Axis:
    return Axis(metric, lambda _, run, step: run.value(step, metric.key))


def curves(arms: Sequence[Arm], x: Axis, y: Axis, variant: int = 0) -> tuple[Curve, ...]:
    """One per arm that has points."""
    made = (
        Curve(
            arm.label,
            arm.style,
            variant,
            _points(arm, x, y),
            tuple(_seed_line(arm, run, x, y) for run in arm.seeds) if len(arm.seeds) > 1 else (),
        )
        for arm in arms
    )
    return tuple(curve for curve in made if curve.points)


def _points(arm: Arm, x: Axis, y: Axis) -> tuple[Point, ...]:
    return tuple(point for step in _order(arm) if (point := _point(arm, step, x, y)))


def _order(arm: Arm) -> list[int]:
    """Steps as they are joined: of temperatures, from the highest to the lowest, and of one from the largest top-p."""
    sharpness = {step: arm.seeds[0].sharpness(step) for step in arm.steps}
    return sorted(arm.steps, key=lambda step: (-sharpness[step][0], -sharpness[step][1], step))


def _point(arm: Arm, step: int, x: Axis, y: Axis) -> Point | None:
    pairs = [pair for run in arm.at_end if (pair := _pair(arm, run, step, x, y))]
    if not pairs:
        return None
    across, up = t_interval([pair[0] for pair in pairs]), t_interval([pair[1] for pair in pairs])
    seeds = f" ({len(pairs)} seeds)" if len(pairs) > 1 else ""
    tag = "" if arm.trained else arm.setting(step)
    lines = [f"{arm.label}, {tag or f'step {step}'}{seeds}", _hover(y.metric, up)]
    lines += [_hover(x.metric, across)] if x.metric != STEP else []
    return Point(step, across, up, "\n".join(lines), tag)


def _hover(metric: Metric, estimate: Estimate) -> str:
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f" [{number(estimate.low, metric.decimals)}, {number(estimate.high, metric.decimals)}]"
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.title} {number(estimate.mean, metric.decimals)}{unit}{interval}"


def _pair(arm: Arm, run: SeedRun, step: int, x: Axis, y: Axis) -> tuple[float, float] | None:
    across, up = x.of(arm, run, step), y.of(arm, run, step)
    return None if across is None or up is None else (across, up)


def _seed_line(arm: Arm, run: SeedRun, x: Axis, y: Axis) -> tuple[tuple[float, float], ...]:
    return tuple(pair for step in _order(arm) if step in run.probes and (pair := _pair(arm, run, step, x, y)))
