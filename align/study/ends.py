"""The figure of every arm: a metric at the arm's end, with its interval and its seeds, beside where the arm began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from align.report import figures
from align.report.arms import Arm
from align.report.figures import INK, PAPER, QUIET
from align.report.metrics import Metric
from align.report.stats import Estimate, at_step
from align.report.text import visible
from align.study.judged import metric_of
from align.study.spec import Study
from align.study.verdict import Found

WIDTH, ROW, AROUND = 5.2, 0.24, 1.15  # inches: of the figure, of an arm, of what stands above and below the arms
SEED_OFFSET = -0.27  # of an arm's row: seeds stand above its mean


@dataclass(frozen=True)
class Row:
    """An arm: where it began (None: it has no step 0 of its own) and where it ended, seed by seed too."""

    arm: Arm
    start: Estimate | None
    end: Estimate
    seeds: tuple[float, ...]

    @property
    def varies(self) -> bool:
        """Whether there is an interval over seeds to be drawn: a rule that reads no labels has the same for all."""
        return len({*self.seeds}) > 1

    def interval(self, share: bool) -> tuple[float, float]:
        """Of a share what it can be."""
        assert self.end.low is not None and self.end.high is not None
        return (max(self.end.low, 0.0), min(self.end.high, 1.0)) if share else (self.end.low, self.end.high)


@dataclass(frozen=True)
class Ends:
    name: str
    metric: Metric
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"Every arm: {self.metric.axis}"

    @property
    def caption(self) -> str:
        began = " A grey bar is the arm's own step 0." if any(row.start for row in self.rows) else ""
        return (
            f"{self.metric.title[0].upper()}{self.metric.title[1:]} at the end of each arm: mean over seeds with its "
            f"95 % interval over seeds, prompts taken as they are, and single seeds (rings).{began} What decides is "
            "differences of one seed and prompt, above: their intervals may be narrower than these, or wider."
        )


def figures_of(study: Study, found: Found) -> list[Ends]:
    """Of what decides the claim, and of what a cure may cost; the arms in the order they are declared."""
    named = {"arms": found.primary.metric}
    if study.cure:
        named["arms-cost"] = metric_of(study.cure.cost.metric)
    made = [Ends(name, metric, _rows(list(found.arms.values()), metric)) for name, metric in named.items()]
    return [one for i, one in enumerate(made) if one.rows and (i == 0 or one.metric.key != made[0].metric.key)]


def _rows(arms: Sequence[Arm], metric: Metric) -> tuple[Row, ...]:
    rows = []
    for arm in arms:
        if (end := at_step(arm, arm.end, metric.key)) is not None:
            seeds = (run.value(arm.end, metric.key) for run in arm.at_end if arm.end is not None)
            start = at_step(arm, 0, metric.key) if arm.end else None
            rows.append(Row(arm, start, end, tuple(value for value in seeds if value is not None)))
    return tuple(rows)


def save(one: Ends, out: Path) -> str:
    """Write `out/NAME.svg` and `.png`; the <svg> element for the page comes back."""
    svg = figures.as_svg(one.name, lambda: _draw(one), out / f"{one.name}.png")
    for i, row in enumerate(one.rows):
        told = f" {one.metric.interval(row.end.low, row.end.high, sign=False)}" if row.varies else ""
        svg = figures.titled(svg, _gid(i), [f"{row.arm.label}\n{one.metric.show(row.end.mean)}{told}"])
    (out / f"{one.name}.svg").write_text(svg, encoding="utf-8")
    return figures.themed(svg, one.name, f"{one.title}. {one.caption}")


def _draw(one: Ends) -> Canvas:
    canvas = Canvas(figsize=(WIDTH, AROUND + ROW * len(one.rows)), layout="constrained")
    axes = canvas.subplots()
    for place, row in enumerate(one.rows):
        _draw_row(axes, place, row, one.metric.percent)
    axes.set_yticks(range(len(one.rows)), [visible(row.arm.label) for row in one.rows])
    axes.invert_yaxis()
    axes.margins(x=0.05)
    axes.grid(visible=False, axis="y")
    unit = f"{one.metric.title} (%)" if one.metric.percent else one.metric.axis
    axes.set(xlabel=unit, ylim=(len(one.rows) - 0.5, -0.6))
    axes.set_title(one.title, loc="left", fontsize=9, fontweight="bold", pad=8)
    if any(row.start for row in one.rows):
        axes.plot([], [], color=QUIET, marker="|", markersize=9, markeredgewidth=1.6, linestyle="none", label="step 0")
    ring = {"marker": "o", "markersize": 3.6, "markerfacecolor": PAPER, "markeredgecolor": INK, "linestyle": "none"}
    axes.plot([], [], **ring, label="a seed")
    axes.plot([], [], color=INK, marker="o", markersize=5.5, linewidth=1.5, label="mean and 95 % interval")
    canvas.legend(loc="outside lower left", ncols=3, handlelength=2.2, columnspacing=1.4, borderaxespad=0.2)
    return canvas


def _draw_row(axes: Axes, place: int, row: Row, share: bool) -> None:
    look, scale = figures.look(row.arm.style), 100.0 if share else 1.0
    if row.start:
        axes.plot([row.start.mean * scale], [place], color=QUIET, marker="|", markersize=9, markeredgewidth=1.6)
    if row.varies:
        axes.plot([end * scale for end in row.interval(share)], [place, place], color=look.colour, linewidth=1.5)
    ring = {"marker": "o", "markersize": 3.6, "markerfacecolor": PAPER, "markeredgecolor": look.colour}
    above = [place + SEED_OFFSET] * len(row.seeds)
    axes.plot([value * scale for value in row.seeds], above, **ring, linestyle="none", markeredgewidth=0.9)
    axes.plot([row.end.mean * scale], [place], color=look.colour, marker=look.marker, markersize=5.5,
              markeredgecolor=PAPER, markeredgewidth=0.7, linestyle="none", gid=_gid(place), zorder=4)  # fmt: skip


def _gid(place: int) -> str:
    return f"end-{place}"
