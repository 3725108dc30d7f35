"""What each figure shows: titles, captions, axes and points. `figures.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.report.arms import Arm, SeedRun
from align.report.stats import Estimate, t_interval
from align.report.tables import GOLD, LENGTH, PROXY, Metric
from align.report.text import number, one_line

STEP = Metric("step", "optimizer step", decimals=0)


@dataclass(frozen=True)
class Point:
    step: int
    x: Estimate
    y: Estimate
    hover: str


@dataclass(frozen=True)
class Curve:
    """One arm: the mean at each probed step over the seeds that reached its end, and every seed's own line."""

    label: str
    style: int  # the arm's number: its colour and marker in every figure
    points: tuple[Point, ...]
    seeds: tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True)
class Figure:
    name: str  # of its files
    title: str
    caption: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]

    @property
    def path(self) -> bool:
        """A path through the plane (reward against KL), as opposed to a function of the step."""
        return self.x_label != STEP.title

    @property
    def crowded(self) -> bool:
        return len(self.curves) > CROWDED


CROWDED = 6  # with more arms, intervals and single seeds hide more than they show
NAMES = ("frontier-proxy", "frontier-gold", "proxy-step", "gold-step", "length-step", "kl-step")


def figures(arms: Sequence[Arm], kl: Metric) -> list[Figure]:
    """The figures for which some arm has points, frontier first."""
    rewards = ((PROXY, "proxy", _proxy_label(arms)), (GOLD, "gold", GOLD.title))
    drawn = [_frontier(arms, kl, metric, name, label) for metric, name, label in rewards]
    drawn += [_against_step(arms, metric, f"{name}-step", label) for metric, name, label in rewards]
    drawn.append(_against_step(arms, LENGTH, "length-step", _axis(LENGTH)))
    drawn.append(_against_step(arms, kl, "kl-step", _axis(kl)))
    return [figure for figure in drawn if any(curve.points for curve in figure.curves)]


def how_to_read(arms: Sequence[Arm]) -> str:
    """What the lines, bands and bars of all figures are."""
    if all(len(arm.seeds) == 1 for arm in arms):
        return "Each line is one run."
    if len(arms) > CROWDED:
        return "Lines are means over seeds; intervals are left out among so many arms and stand in the summary."
    whose = " that reached the last step" if any(len(arm.at_end) < len(arm.seeds) for arm in arms) else ""
    return (
        f"Lines are means over seeds{whose}, thin lines single seeds; bands, and bars at the end of a reward-KL path, "
        "are 95% t-intervals over seeds, cut at the frame."
    )


def _frontier(arms: Sequence[Arm], kl: Metric, reward: Metric, name: str, label: str) -> Figure:
    title = f"{reward.title.capitalize()} against KL"
    caption = (
        f"The {reward.title} of each arm for how far it has moved from the reference: one point per probed step, "
        "joined in step order from step 0 (ring)."
    )
    return Figure(f"frontier-{name}", title, caption, _axis(kl), label, _curves(arms, kl, reward))


def _against_step(arms: Sequence[Arm], metric: Metric, name: str, label: str) -> Figure:
    what = metric.title.split(",")[0]
    what = what[0].upper() + what[1:]
    caption = f"{what} on the held-out probe prompts at each probed step."
    return Figure(name, f"{what} during training", caption, STEP.title, label, _curves(arms, STEP, metric))


def _axis(metric: Metric) -> str:
    return f"{metric.title} ({metric.unit})"


def _curves(arms: Sequence[Arm], x: Metric, y: Metric) -> tuple[Curve, ...]:
    return tuple(
        Curve(
            arm.label,
            number,
            tuple(point for step in arm.steps if (point := _point(arm, step, x, y))),
            tuple(_seed_line(run, x, y) for run in arm.seeds) if len(arm.seeds) > 1 else (),
        )
        for number, arm in enumerate(arms)
    )


def _point(arm: Arm, step: int, x: Metric, y: Metric) -> Point | None:
    pairs = [pair for run in arm.at_end if (pair := _pair(run, step, x, y))]
    if not pairs:
        return None
    across, up = t_interval([pair[0] for pair in pairs]), t_interval([pair[1] for pair in pairs])
    seeds = f" ({len(pairs)} seeds)" if len(pairs) > 1 else ""
    lines = [f"{arm.label}, step {step}{seeds}", _hover(y, up), *([_hover(x, across)] if x is not STEP else [])]
    return Point(step, across, up, "\n".join(lines))


def _hover(metric: Metric, estimate: Estimate) -> str:
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f" [{number(estimate.low, metric.decimals)}, {number(estimate.high, metric.decimals)}]"
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.title} {number(estimate.mean, metric.decimals)}{unit}{interval}"


def _pair(run: SeedRun, step: int, x: Metric, y: Metric) -> tuple[float, float] | None:
    across = float(step) if x is STEP else run.value(step, x.key)
    up = run.value(step, y.key)
    return None if across is None or up is None else (across, up)


def _seed_line(run: SeedRun, x: Metric, y: Metric) -> tuple[tuple[float, float], ...]:
    return tuple(pair for step in sorted(run.probes) if (pair := _pair(run, step, x, y)))


def _proxy_label(arms: Sequence[Arm]) -> str:
    """ "proxy reward: learned - 0.01*length": the config's formula, where all that log the reward share it."""
    formulas = {arm.config.get("reward.formula") for arm in arms if arm.logs(PROXY.key)}
    if len(formulas) > 1:
        return f"{PROXY.title} (not the same in all arms)"
    formula = next(iter(formulas), None)
    return f"{PROXY.title}: {one_line(formula)}" if isinstance(formula, str) else PROXY.title
