"""Figures as matplotlib draws them: one drawing for SVG file, PNG file and, in its theme's colours, the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from align.report.curves import Curve, Figure
from align.report.text import one_line, visible

INK, QUIET, RULE, PAPER = "#1b1c1e", "#62656b", "#e4e3df", "#ffffff"
# Okabe & Ito's colour-blind-safe palette without its yellow, which is too light for lines on white; ink is its black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS, GLYPHS = "os^DvP*", "●■▲◆▼✚★"
BASELINE_MARKERS, BASELINE_GLYPHS = "X><d", "✖▶◀♦"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
SECOND, BASELINE = (0, (3, 1.6)), (0, (1, 1.2))  # dashes of a figure's second quantity, and of what is not trained
LEGEND_CHARS = 84  # of a legend row, at its font size; a handle takes nine
STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same picture on every machine
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in an arm's name is a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}


@dataclass(frozen=True)
class Look:
    """How an arm looks in every figure and beside its name."""

    colour: str
    marker: str
    glyph: str
    dashes: Any


def look(style: int) -> Look:
    """Trained arms: colour and marker, and dashes from the second round on, so that 49 arms all look different.

    The marker shifts by one with every round through the colours. Baselines (negative) are grey and dotted.
    """
    if style < 0:
        number = (-1 - style) % len(BASELINE_MARKERS)
        return Look(QUIET, BASELINE_MARKERS[number], BASELINE_GLYPHS[number], BASELINE)
    turn, colour = divmod(style, len(COLOURS))
    shape = (style + turn) % len(MARKERS)
    return Look(COLOURS[colour], MARKERS[shape], GLYPHS[shape], DASHES[turn % len(DASHES)])


def save(figure: Figure, out: Path) -> str:
    """Write `out/NAME.svg` and `.png`; the SVG for the page comes back."""
    svg = _svg(figure, out / f"{figure.name}.png")
    (out / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
    return _for_page(svg, figure)


def for_page(figure: Figure) -> str:
    """The <svg> element for a page that has no files beside it."""
    return _for_page(_svg(figure, None), figure)


def _svg(figure: Figure, png: Path | None) -> str:
    return _with_hover(as_svg(figure.name, lambda: _draw(figure), png), figure)


def as_svg(name: str, draw: Callable[[], Canvas], png: Path | None) -> str:
    """What `draw` makes in the style of all figures, as SVG, and in the file `png`. Equal drawings give equal bytes."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of an arm's name; the page's own font may have it
        canvas = draw()
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", facecolor=PAPER, metadata={"Date": None, "Creator": None})
        canvas.set_layout_engine("none")  # what it found stands: laying out again would cost as much as drawing
        if png:
            canvas.savefig(png, dpi=200, facecolor=PAPER)
    return _rounded(buffer.getvalue())


def _draw(figure: Figure) -> Canvas:
    """Axes of one size whatever the number of arms; the legend is stacked below them."""
    names = [_short(curve.label) for curve in figure.curves if curve.variant == 0]
    names += [*figure.variants, *(["step 0"] if figure.plane else [])]
    columns = max(1, LEGEND_CHARS // (max(map(len, names)) + 9))
    canvas = Canvas(figsize=(5.2, 3.3 + 0.17 * -(-len(names) // columns)), layout="constrained")
    axes = canvas.subplots()
    if figure.zero:
        axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
    for curve in figure.curves:
        _draw_mean(axes, curve)
        if not figure.crowded and not figure.variants:
            _draw_seeds(axes, curve)
    axes.margins(0.06)
    limits = axes.get_xlim(), axes.get_ylim()
    if not figure.crowded:
        for curve in figure.curves:
            _draw_interval(axes, curve, figure.plane)
        _draw_marks(axes, figure)
    if figure.plane:
        _draw_starts(axes, figure)
    for dashes, name in zip(("-", SECOND), figure.variants, strict=False):
        axes.plot([], [], color=INK, linestyle=dashes, linewidth=1.2, label=name)
    # Intervals of two seeds are wide: they are cut at the frame rather than allowed to flatten every line.
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=figure.x_label, ylabel=_short(figure.y_label))
    axes.set_title(figure.title, loc="left", fontsize=9, fontweight="bold", pad=8)
    if figure.by_step:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    canvas.legend(loc="outside lower left", ncols=columns, handlelength=2.6, columnspacing=1.4, borderaxespad=0.2)
    return canvas


def _draw_mean(axes: Axes, curve: Curve) -> None:
    xs, ys = [point.x.mean for point in curve.points], [point.y.mean for point in curve.points]
    own = look(curve.style)
    shape = {"color": own.colour, "marker": own.marker, "markersize": 5.5, "markeredgecolor": PAPER}
    shape |= {"markeredgewidth": 0.7}
    if curve.variant:
        shape |= {"markerfacecolor": PAPER, "markeredgecolor": own.colour, "markersize": 4.5}
    line = {"linestyle": SECOND if curve.variant else own.dashes, "linewidth": 1.1 if curve.style < 0 else 1.5}
    axes.plot(xs, ys, color=own.colour, **line, zorder=3)
    # The markers have a name of their own, by which `_with_hover` finds them.
    axes.plot(xs, ys, **shape, linestyle="none", gid=_points_id(curve), zorder=4)
    if not curve.variant:
        axes.plot([], [], **shape, **line, label=_short(curve.label))
    for point in curve.points:
        if point.tag and point.x.mean:  # at KL 0 all of them lie on one spot
            place = {"xytext": (4, -8), "textcoords": "offset points"}
            axes.annotate(point.tag, (point.x.mean, point.y.mean), **place, fontsize=6.5, color=QUIET, zorder=4)


def _draw_seeds(axes: Axes, curve: Curve) -> None:
    for line in curve.seeds:
        xs, ys = [x for x, _ in line], [y for _, y in line]
        axes.plot(xs, ys, color=look(curve.style).colour, linewidth=0.7, alpha=0.4, zorder=2)


def _draw_interval(axes: Axes, curve: Curve, plane: bool) -> None:
    points = [point for point in curve.points if point.y.n > 1]
    if not points:
        return
    colour = look(curve.style).colour
    if plane:
        end = points[-1]
        bars = {"xerr": end.x.half_width, "yerr": end.y.half_width}
        axes.errorbar(end.x.mean, end.y.mean, **bars, color=colour, linewidth=0.8, capsize=2, zorder=2)
        return
    xs = [point.x.mean for point in points]
    low, high = [point.y.low for point in points], [point.y.high for point in points]
    axes.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)


def _draw_marks(axes: Axes, figure: Figure) -> None:
    """A small triangle on the axis where an alarm first fired; arms beside each other do not hide one another."""
    for style in dict.fromkeys(mark.style for mark in figure.marks):
        steps = [mark.step for mark in figure.marks if mark.style == style]
        heights = [0.02 + 0.035 * [m.style for m in figure.marks if m.step == step].index(style) for step in steps]
        axes.plot(steps, heights, transform=axes.get_xaxis_transform(), linestyle="none", marker=6, markersize=4.5,
                  color=look(style).colour, gid=f"marks-{style}", zorder=6, clip_on=False)  # fmt: skip


def _draw_starts(axes: Axes, figure: Figure) -> None:
    firsts = [curve.points[0] for curve in figure.curves if curve.style >= 0]
    starts = {(point.x.mean, point.y.mean) for point in firsts if point.step == 0}
    if starts:
        xs, ys = zip(*sorted(starts), strict=True)
        look = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        axes.plot(xs, ys, **look, markeredgewidth=0.9, label="step 0", zorder=5, clip_on=False)


def _short(label: str) -> str:
    return label if len(label) <= 50 else f"{label[:49]}…"


def _points_id(curve: Curve) -> str:
    return f"points-{curve.style}-{curve.variant}"


def _rounded(svg: str) -> str:
    """Coordinates to a hundredth of a point; texts stay as they are. A third of the size with many arms."""
    places = re.compile(r"(\.\d\d)\d+")
    return re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda attribute: places.sub(r"\1", attribute[0]), svg)


def _with_hover(svg: str, figure: Figure) -> str:
    """Give every marker a <title>, which browsers show on hover and read aloud."""
    for curve in figure.curves:
        svg = titled(svg, _points_id(curve), [point.hover for point in curve.points])
    if not figure.crowded:
        for style in dict.fromkeys(mark.style for mark in figure.marks):
            svg = titled(svg, f"marks-{style}", [mark.hover for mark in figure.marks if mark.style == style])
    return svg


def titled(svg: str, name: str, hovers: Sequence[str]) -> str:
    """The markers of the line with this gid, each with a <title>."""
    head, found, tail = svg.partition(f'<g id="{name}">')
    indent = head[head.rindex("\n") :]
    body, end, rest = tail.partition(f"{indent}</g>")
    titles = iter([html.escape(visible(hover)) for hover in hovers])
    body, marked = re.subn(r"(<use [^>]*)/>", lambda match: f"{match[1]}><title>{next(titles)}</title></use>", body)
    assert marked == len(hovers), f"{name}: {marked} markers for {len(hovers)} points"
    return head + found + body + end + rest


def _for_page(svg: str, figure: Figure) -> str:
    return themed(svg, figure.name, f"{figure.title}. {figure.caption}")


def themed(svg: str, name: str, label: str) -> str:
    """The <svg> element alone, its ids made unique in the page, its ink, grid and paper taken from the page's theme."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for token, themed in (
        (INK, "currentColor"),
        (QUIET, "var(--quiet)"),
        (RULE, "var(--rule)"),
        (PAPER, "var(--paper)"),
    ):
        svg = svg.replace(token, themed)
    label = html.escape(one_line(label))
    head = re.compile(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>')
    return head.sub(lambda found: f'<svg {found[1]} role="img" aria-label="{label}">', svg, count=1)
