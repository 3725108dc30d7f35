"""What each figure shows: titles, captions, axes and points. `figures.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.report.arms import Arm, SeedRun
from align.report.stats import Estimate, t_interval
from align.report.tables import GOLD, LENGTH, PROXY, Metric
from align.report.text import config_value, number

STEP = Metric("step", "optimizer step", decimals=0)


@dataclass(frozen=True)
class Point:
    step: int
    x: Estimate
    y: Estimate
    hover: str


@dataclass(frozen=True)
class Curve:
    """One arm: the mean over its seeds at each probed step, and the seeds one by one where there are several."""

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
        return not self.x_label.startswith(STEP.title)


NAMES = ("frontier-proxy", "frontier-gold", "proxy-step", "gold-step", "length-step", "kl-step")


def figures(arms: Sequence[Arm], kl: Metric) -> list[Figure]:
    """The figures for which some arm has points, frontier first."""
    rewards = ((PROXY, "proxy", _proxy_label(arms)), (GOLD, "gold", GOLD.title))
    drawn = [_frontier(arms, kl, metric, name, label) for metric, name, label in rewards]
    drawn += [_against_step(arms, metric, f"{name}-step", label) for metric, name, label in rewards]
    drawn.append(_against_step(arms, LENGTH, "length-step", "completion length (tokens)"))
    drawn.append(_against_step(arms, kl, "kl-step", f"{kl.title} ({kl.unit})"))
    return [figure for figure in drawn if any(curve.points for curve in figure.curves)]


def _frontier(arms: Sequence[Arm], kl: Metric, reward: Metric, name: str, label: str) -> Figure:
    title = f"{reward.title.capitalize()} against KL"
    caption = (
        f"What each arm gained in {reward.title} for how far it moved from the reference: one point per probed step, "
        f"joined in step order from step 0 (ring){_spread(arms, 'bars at the last point')}."
    )
    curves = _curves(arms, kl, reward)
    return Figure(f"frontier-{name}", title, caption, f"{kl.title} ({kl.unit})", label, curves)


def _against_step(arms: Sequence[Arm], metric: Metric, name: str, label: str) -> Figure:
    what = {LENGTH.key: "Completion length"}.get(metric.key, metric.title[0].upper() + metric.title[1:])
    caption = f"{what} on the held-out probe prompts over training{_spread(arms, 'bands')}."
    return Figure(name, f"{what.split(',')[0]} during training", caption, STEP.title, label, _curves(arms, STEP, metric))


def _spread(arms: Sequence[Arm], drawn_as: str) -> str:
    if not any(len(arm.seeds) > 1 for arm in arms):
        return ""
    return f"; lines are means over seeds, thin lines single seeds, {drawn_as} 95% t-intervals over seeds"


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
    pairs = [pair for run in arm.seeds if (pair := _pair(run, step, x, y))]
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
    """ "proxy reward: learned − 0.01 length", from the weighted terms of the config."""
    formulas = list(dict.fromkeys(_formula(arm) for arm in arms))
    return f"{PROXY.title}: {formulas[0] if len(formulas) == 1 else 'differs between arms'}" if any(formulas) else PROXY.title


def _formula(arm: Arm) -> str:
    prefix = "reward.terms."
    terms: list[tuple[str, Any]] = [(k.removeprefix(prefix), v) for k, v in arm.config.items() if k.startswith(prefix)]
    return " + ".join(name if weight == 1 else f"{config_value(weight)} × {name}" for name, weight in terms)
