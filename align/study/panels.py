"""The figure of an exact study: columns of its own tables, as `align.exact.Figure` names them, in the pages' style."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import FigureBase
from matplotlib.ticker import LogLocator, NullLocator

from align.exact import Figure, Panel
from align.refusals import ConfigError
from align.report import figures
from align.report.figures import INK, PAPER, QUIET, SECOND
from align.report.text import visible

Tables = Mapping[str, Sequence[Mapping[str, Any]]]
WIDTH, HEIGHT = 4.3, 2.9  # of a panel, in inches; small, so that its text can be read on a phone
TITLE_CHARS = 48
LEGEND_ROW, LEGEND_CHAR, LEGEND_HANDLE = 0.17, 4.3, 36  # inches; points
BAR, AROUND = 0.19, 1.0  # inches of a bar, and of what stands above and below all bars
FEW = 4  # so many places on an axis are its ticks


@dataclass(frozen=True)
class Series:
    """What one line, or the bars of one colour, show."""

    label: str
    style: int  # colour and marker
    dashed: bool
    xs: tuple[Any, ...]
    ys: tuple[float, ...]


def save(figure: Figure, tables: Tables, out: Path) -> list[str]:
    """Write `out/figure.svg` and `.png`; the page's <svg> elements come back, one for each panel."""
    shown = [series(panel, tables) for panel in figure.panels]
    svg = figures.as_svg("figure", lambda: draw(figure.panels, shown), out / "figure.png")
    (out / "figure.svg").write_text(_with_hover(svg, figure.panels, shown), encoding="utf-8")
    return [_for_page(f"panel-{i}", *one) for i, one in enumerate(zip(figure.panels, shown, strict=True))]


def series(panel: Panel, tables: Tables) -> list[Series]:
    """Raises ConfigError where the table has no such column, or a logarithm none of its numbers."""
    every = tables.get(panel.table, [])
    for column in (panel.x, *panel.y, *panel.where, *([panel.by] if panel.by else [])):
        if not every or column not in every[0]:
            raise ConfigError(
                f"figure: table {panel.table!r} has no column {column!r}; {panel.table!r} has "
                f"{', '.join(every[0]) if every else 'no rows'}, the tables are {', '.join(tables)}"
            )
    rows = [row for row in every if all(row[key] == value for key, value in panel.where.items())]
    if not panel.by:
        order = list(panel.names)
        if order:
            rows = sorted((row for row in rows if row[panel.x] in order), key=lambda row: order.index(row[panel.x]))
        return [_series(panel, rows, name, column, (i, False)) for i, (column, name) in enumerate(panel.y.items())]
    return [
        _series(panel, [row for row in rows if row[panel.by] == value], f"{name}{said}", column, (i, dashed > 0))
        for (dashed, (column, said)), (i, (value, name)) in product(enumerate(panel.y.items()),
                                                                    enumerate(panel.names.items()))
    ]  # fmt: skip


def _series(panel: Panel, rows: Sequence[Mapping[str, Any]], label: str, column: str, look: tuple[int, bool]) -> Series:
    xs, ys = tuple(row[panel.x] for row in rows), tuple(row[column] for row in rows)
    if not rows:
        raise ConfigError(f"figure: table {panel.table!r} has no rows for {label!r} where {dict(panel.where)}")
    for axis, values in (("x", xs), ("y", ys)):
        if axis in panel.log and min(values) <= 0:
            raise ConfigError(f"figure: log={panel.log!r}, but {label!r} has {min(values)} on {axis}; leave {axis} out")
    return Series(visible(label), look[0], look[1], xs, ys)


def draw(panels: Sequence[Panel], shown: Sequence[Sequence[Series]]) -> Canvas:
    """Panels side by side, each with its own legend below."""
    height = max(_height(*one) for one in zip(panels, shown, strict=True))
    canvas = Canvas(figsize=(WIDTH * len(panels), height), layout="constrained")
    places = canvas.subfigures(1, len(panels), squeeze=False)[0]
    for i, (place, panel, lines) in enumerate(zip(places, panels, shown, strict=True)):
        _draw_panel(place, panel, lines, f"{i}")
    return canvas


def _draw_panel(place: FigureBase, panel: Panel, lines: Sequence[Series], name: str) -> None:
    axes = place.subplots()
    if _of_words(lines):
        _draw_bars(axes, panel, lines)
    else:
        _draw_lines(axes, panel, lines, name)
    axes.set_title(textwrap.fill(panel.title, TITLE_CHARS), loc="left", x=0, fontsize=9, fontweight="bold", pad=8)
    if len(lines) > 1:
        columns = _columns(lines)
        place.legend(loc="outside lower left", ncols=columns, handlelength=2.6, columnspacing=1.4, borderaxespad=0.2)


def _draw_lines(axes: Axes, panel: Panel, lines: Sequence[Series], name: str) -> None:
    for i, one in enumerate(lines):
        look = figures.look(one.style)
        under = min(len(lines) - i, 3)  # the first are the thickest: where three lines coincide, all are seen
        shape = {
            "marker": look.marker,
            "markersize": 4.5 + 0.7 * under,
            "markeredgecolor": PAPER,
            "markeredgewidth": 0.6,
        }
        shape |= {"markerfacecolor": PAPER, "markeredgecolor": look.colour} if one.dashed else {}
        line = {"color": look.colour, "linestyle": SECOND if one.dashed else "-", "linewidth": 1 + 0.4 * under}
        axes.plot(one.xs, one.ys, **line, zorder=3 + i)
        axes.plot(one.xs, one.ys, color=look.colour, linestyle="none", **shape, gid=_gid(name, i), zorder=3 + i)
        axes.plot([], [], **line | {"linewidth": 1.5}, **shape | {"markersize": 5.5}, label=one.label)
    axes.margins(0.06)
    axes.set(xlabel=panel.labels[0], ylabel=panel.labels[1])
    if min(min(one.ys) for one in lines) < 0 < max(max(one.ys) for one in lines):
        axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
    for which, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in panel.log:
            axes.set(**{f"{which}scale": "log"})
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 200 else (1.0, 2.0, 5.0)))
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
            axis.set_minor_locator(NullLocator())
    places = sorted({x for one in lines for x in one.xs})
    if len(places) <= FEW:
        axes.set_xticks(places, [f"{x:g}" for x in places])


def _draw_bars(axes: Axes, panel: Panel, lines: Sequence[Series]) -> None:
    """Bars lie, so that their names can be read; each ends with its number."""
    thick = 0.8 / len(lines)
    longest = max(max(one.ys) for one in lines)
    for i, one in enumerate(lines):
        places = [place + (i - (len(lines) - 1) / 2) * thick for place in range(len(one.xs))]
        colour = figures.look(one.style).colour if len(lines) > 1 else QUIET  # of no other panel's meaning
        axes.barh(places, one.ys, thick * 0.9, color=colour, label=one.label, zorder=3)
        for place, value in zip(places, one.ys, strict=True):
            said = "≈ 0" if 0 < value < longest / 1e5 else _short(value)  # rounding, where the others can be seen
            axes.text(value + longest / 80, place, said, va="center", zorder=4)
    words = lines[0].xs
    axes.set_yticks(range(len(words)), [visible(str(panel.names.get(word, word))) for word in words])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=panel.labels[1], ylabel=panel.labels[0], xlim=(0, longest * 1.16))


def _with_hover(svg: str, panels: Sequence[Panel], shown: Sequence[Sequence[Series]]) -> str:
    for i, (panel, lines) in enumerate(zip(panels, shown, strict=True)):
        for j, one in enumerate([] if _of_words(lines) else lines):
            hovers = [f"{one.label}\n{panel.labels[0]} {x:.4g}\n{panel.labels[1]} {_short(y)}"
                      for x, y in zip(one.xs, one.ys, strict=True)]  # fmt: skip
            svg = figures.titled(svg, _gid(f"{i}", j), hovers)
    return svg


def _for_page(name: str, panel: Panel, lines: Sequence[Series]) -> str:
    svg = figures.as_svg(name, lambda: draw([panel], [lines]), None)
    return figures.themed(_with_hover(svg, [panel], [lines]), name, panel.title)


def _height(panel: Panel, lines: Sequence[Series]) -> float:
    legend = LEGEND_ROW * -(-len(lines) // _columns(lines)) if len(lines) > 1 else 0
    return legend + (AROUND + BAR * len(lines[0].xs) * len(lines) if _of_words(lines) else HEIGHT)


def _columns(lines: Sequence[Series]) -> int:
    return max(1, int(72 * WIDTH // (LEGEND_HANDLE + LEGEND_CHAR * max(len(one.label) for one in lines))))


def _of_words(lines: Sequence[Series]) -> bool:
    return isinstance(lines[0].xs[0], str)


def _gid(panel: str, line: int) -> str:
    return f"points-{panel}-{line}"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
