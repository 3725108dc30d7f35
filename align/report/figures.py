"""Figures as matplotlib draws them: one drawing for SVG file, PNG file and, in its theme's colours, the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from align.report.curves import Curve, Figure
from align.report.text import one_line

INK, RULE, PAPER = "#1b1c1e", "#e4e3df", "#ffffff"
# Okabe & Ito's colour-blind-safe palette without its yellow, which is too light for lines on white; ink is its black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS, GLYPHS = "os^DvP*", "●■▲◆▼✚★"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
LEGEND_CHARS = 84  # of a legend row, at its font size; a handle takes nine
STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
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


def colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]


def marker(style: int) -> int:
    """Index into MARKERS: shifts by one with every round through the colours, so that 49 arms all look different."""
    return (style + style // len(COLOURS)) % len(MARKERS)


def save(figure: Figure, out: Path) -> str:
    """Write `out/NAME.svg` and `.png`; the SVG for the page comes back."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": figure.name}):
        canvas = _draw(figure)
        canvas.savefig(out / f"{figure.name}.png", dpi=200, facecolor=PAPER)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", facecolor=PAPER, metadata={"Date": None, "Creator": None})
    svg = _with_hover(buffer.getvalue(), figure)
    (out / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
    return _for_page(svg, figure)


def _draw(figure: Figure) -> Canvas:
    """Axes of one size whatever the number of arms; the legend is stacked below them."""
    columns = max(1, LEGEND_CHARS // (max(len(_short(curve.label)) for curve in figure.curves) + 9))
    rows = -(-(len(figure.curves) + figure.path) // columns)
    canvas = Canvas(figsize=(5.2, 3.3 + 0.17 * rows), layout="constrained")
    axes = canvas.subplots()
    for curve in figure.curves:
        _draw_mean(axes, curve)
        if not figure.crowded:
            _draw_seeds(axes, curve)
    axes.margins(0.06)
    limits = axes.get_xlim(), axes.get_ylim()
    if not figure.crowded:
        for curve in figure.curves:
            _draw_interval(axes, curve, figure.path)
    if figure.path:
        _draw_starts(axes, figure)
    # Intervals of two seeds are wide: they are cut at the frame rather than allowed to flatten every line.
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=figure.x_label, ylabel=_short(figure.y_label))
    axes.set_title(figure.title, loc="left", fontsize=9, fontweight="bold", pad=8)
    if not figure.path:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    canvas.legend(loc="outside lower left", ncols=columns, handlelength=2.4, columnspacing=1.4, borderaxespad=0.2)
    return canvas


def _draw_mean(axes: Axes, curve: Curve) -> None:
    xs, ys = [point.x.mean for point in curve.points], [point.y.mean for point in curve.points]
    look = {"color": colour(curve.style), "marker": MARKERS[marker(curve.style)], "markersize": 5.5}
    look |= {"markeredgecolor": PAPER, "markeredgewidth": 0.7}
    dashes = DASHES[curve.style // len(COLOURS) % len(DASHES)]
    axes.plot(xs, ys, **look, linestyle=dashes, linewidth=1.5, label=_short(curve.label), zorder=3)
    # Drawn once more as markers alone, under a name by which `_with_hover` finds them.
    axes.plot(xs, ys, **look, linestyle="none", gid=_points_id(curve), zorder=4)


def _draw_seeds(axes: Axes, curve: Curve) -> None:
    for line in curve.seeds:
        xs, ys = [x for x, _ in line], [y for _, y in line]
        axes.plot(xs, ys, color=colour(curve.style), linewidth=0.7, alpha=0.4, zorder=2)


def _draw_interval(axes: Axes, curve: Curve, path: bool) -> None:
    points = [point for point in curve.points if point.y.n > 1]
    if not points:
        return
    if path:
        end = points[-1]
        bars = {"xerr": end.x.half_width, "yerr": end.y.half_width}
        axes.errorbar(end.x.mean, end.y.mean, **bars, color=colour(curve.style), linewidth=0.8, capsize=2, zorder=2)
        return
    xs = [point.x.mean for point in points]
    low, high = [point.y.low for point in points], [point.y.high for point in points]
    axes.fill_between(xs, low, high, color=colour(curve.style), alpha=0.13, linewidth=0, zorder=1)


def _draw_starts(axes: Axes, figure: Figure) -> None:
    starts = {(c.points[0].x.mean, c.points[0].y.mean) for c in figure.curves if c.points and c.points[0].step == 0}
    if starts:
        xs, ys = zip(*sorted(starts), strict=True)
        look = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        axes.plot(xs, ys, **look, markeredgewidth=0.9, label="step 0", zorder=5, clip_on=False)


def _short(label: str) -> str:
    return label if len(label) <= 50 else f"{label[:49]}…"


def _points_id(curve: Curve) -> str:
    return f"points-{curve.style}"


def _with_hover(svg: str, figure: Figure) -> str:
    """Give every marker a <title>, which browsers show on hover and read aloud."""
    for curve in figure.curves:
        head, found, tail = svg.partition(f'<g id="{_points_id(curve)}">')
        body, end, rest = tail.partition("</g>\n   </g>")
        titles: Iterator[str] = (html.escape(point.hover) for point in curve.points)
        body, marked = re.subn(r"(<use [^>]*)/>", lambda m, t=titles: f"{m[1]}><title>{next(t)}</title></use>", body)
        assert marked == len(curve.points), f"{figure.name}: {marked} markers for {len(curve.points)} points"
        svg = head + found + body + end + rest
    return svg


def _for_page(svg: str, figure: Figure) -> str:
    """The <svg> element alone, its ids made unique in the page, its ink, grid and paper taken from the page's theme."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{figure.name}-", svg)
    for token, themed in ((INK, "currentColor"), (RULE, "var(--rule)"), (PAPER, "var(--paper)")):
        svg = svg.replace(token, themed)
    label = html.escape(one_line(f"{figure.title}. {figure.caption}"))
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{label}">', svg, count=1)
