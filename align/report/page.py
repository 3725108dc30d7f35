"""The page: everything a comparison has to say in one HTML file that needs no network and runs no code but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.report import figures
from align.report.arms import Arm, SeedRun, differing
from align.report.curves import Figure, how_to_read
from align.report.samples import browser
from align.report.stats import mean
from align.report.tables import CHANGES, ENDS, Metric, Summary
from align.report.text import MISSING, config_value, duration, listing, number, visible

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """A table cell: what it says, below it by how much that changed, and quietly how sure either is."""

    text: str
    change: str = ""
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Comparison:
    """All that the page tells."""

    arms: Sequence[Arm]
    left_out: Sequence[SeedRun]
    summaries: Sequence[Summary]
    kl: Metric
    warnings: Sequence[str]
    figures: Sequence[tuple[Figure, str]]  # with the <svg> element of each


def render(comparison: Comparison) -> str:
    """The page as HTML. Every string from a run is escaped, and its control characters made visible."""
    css, script = (Markup((HERE / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, finalize=_finalize, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"style": _style}
    arms = comparison.arms
    return environment.get_template("page.html.j2").render(
        css=css,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=title(arms),
        subtitle=_subtitle(arms),
        warnings=comparison.warnings,
        columns=_columns(comparison),
        summaries=comparison.summaries,
        cells=[_cells(summary, comparison) for summary in comparison.summaries],
        intervals=_intervals(comparison.summaries),
        figures=[(figure, Markup(svg)) for figure, svg in comparison.figures],
        how_to_read=how_to_read(arms),
        differences=_differences(arms),
        shared=_shared(arms),
        browser=browser(arms),
        runs=_runs(comparison),
    )


def title(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return str(arms[0].seeds[0].record.meta.get("name") or arms[0].label)
    return listing([arm.label for arm in arms]) if len(arms) <= 4 else f"{len(arms)} arms"


def _subtitle(arms: Sequence[Arm]) -> str:
    runs = sum(len(arm.seeds) for arm in arms)
    parts = [f"{len(arms)} arms, {runs} runs" if len(arms) > 1 else f"{runs} run{'s' * (runs > 1)}"]
    for key in ("model.name", "data.name"):
        values = list(dict.fromkeys(config_value(arm.config[key]) for arm in arms if key in arm.config))
        parts += [f"{key.split('.')[0]} {values[0]}"] if len(values) == 1 else []
    return ", ".join(parts)


def _columns(comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, unit or what stands in it) of the summary, without the metrics that no arm logs."""
    columns = [("seeds", ""), ("steps", "")]
    for metric in _shown(comparison.summaries):
        columns.append((f"{metric.title}{f', {metric.unit}' if metric.unit else ''}", "step 0 → end, change"))
    columns += [(metric.title.replace(" to the reference", ""), metric.unit) for metric in _ends(comparison)]
    return [*columns, ("prompts", ""), ("generated", "tokens"), ("time", "")]


def _cells(summary: Summary, comparison: Comparison) -> list[Cell]:
    cells = [Cell(summary.seeds), Cell(summary.steps)]
    for metric in _shown(comparison.summaries):
        start, end, change = (part[metric.key] for part in (summary.start, summary.end, summary.change))
        values = f"{metric.show(mean(start))} → {metric.show(mean(end))}" if start or end else MISSING
        sure = (metric.interval(change), change.excludes_zero) if change else ("", False)
        cells.append(Cell(values, metric.show(change.mean, sign=True) if change else "", *sure))
    for metric in _ends(comparison):
        end = summary.end[metric.key]
        half = end.half_width if end else None
        cells.append(Cell(metric.show(mean(end)), note="" if half is None else f"± {metric.show(half)}"))
    prompts, tokens, seconds = (summary.counters[name] for name in ("prompts", "gen_tokens", "seconds"))
    return [*cells, Cell(number(prompts, 0)), Cell(number(tokens, 0)), Cell(duration(seconds))]


def _shown(summaries: Sequence[Summary]) -> list[Metric]:
    return [metric for metric in CHANGES if any(summary.end[metric.key] for summary in summaries)]


def _ends(comparison: Comparison) -> list[Metric]:
    return [
        metric for metric in (comparison.kl, *ENDS) if any(summary.end[metric.key] for summary in comparison.summaries)
    ]


def _intervals(summaries: Sequence[Summary]) -> list[str]:
    """What the intervals of the change columns are taken over, in sentences."""
    over: dict[str, list[str]] = {}
    for summary in summaries:
        kinds = {(e.over, e.n) for e in summary.change.values() if e and e.low is not None}
        bare = any(e and e.low is None for e in summary.change.values())
        for kind, n in sorted(kinds) or ([("none", 1)] if bare else []):
            over.setdefault(f"{kind} {n}", []).append(summary.arm.label)
    said = {
        "seeds": "over {n} seeds, each seed's end against its own step 0",
        "prompts": "one seed, over {n} prompts, each prompt's mean at the end against its own at step 0; "
        "it does not say what another training seed would give",
        "none": "one seed and no samples at both ends, so no interval",
    }
    sentences = []
    for key, labels in over.items():
        kind, count = key.split()
        who = "All arms" if len(labels) == len(summaries) > 1 else listing(labels)
        sentences.append(f"{who}: {said[kind].format(n=count)}.")
    return sentences


def _differences(arms: Sequence[Arm]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Rows (key, value per arm): keys that all arms have, then keys that only some have."""
    rows = {key: [config_value(a.config[key]) if key in a.config else MISSING for a in arms] for key in _keys(arms)}
    everywhere = {key for key in rows if all(key in arm.config for arm in arms)}
    common = [(key, row) for key, row in rows.items() if key in everywhere]
    return common, [(key, row) for key, row in rows.items() if key not in everywhere]


def _keys(arms: Sequence[Arm]) -> list[str]:
    return differing([arm.config for arm in arms])


def _shared(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    different = set(_keys(arms))
    return [(key, config_value(value)) for key, value in arms[0].config.items() if key not in different]


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    members = [(style, arm, run) for style, arm in enumerate(comparison.arms) for run in arm.seeds]
    rows = [_run(run, arm.label, style) for style, arm, run in members]
    return rows + [_run(run, "left out", None) for run in comparison.left_out]


def _run(run: SeedRun, label: str, style: int | None) -> dict[str, Any]:
    meta = run.record.meta
    short = {name: str(meta.get(name) or MISSING)[:10] for name in ("commit", "start_fingerprint", "data_fingerprint")}
    words = {name: str(meta.get(name) or MISSING) for name in ("device", "dtype")}
    row = {"label": label, "style": style, "seed": config_value(run.seed), "state": run.record.state}
    return row | {"step": MISSING if run.last is None else run.last, "path": str(run.record.path)} | short | words


def _style(number: int) -> dict[str, str]:
    """How an arm looks beside its name: the figures' colour and marker."""
    colour = figures.colour(number)
    glyph = figures.GLYPHS[figures.marker(number)]
    return {"colour": "currentColor" if colour == figures.INK else colour, "glyph": glyph}


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
