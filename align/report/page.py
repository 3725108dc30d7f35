"""The page: everything a comparison has to say in one HTML file that needs no network and runs no code but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from align.report import figures, views
from align.report.arms import BEST_OF_N, TEMPERED, Arm, SeedRun, differing
from align.report.curves import Figure
from align.report.findings import Findings
from align.report.gallery import how_to_read
from align.report.glance import glance
from align.report.samples import SORTS, browser
from align.report.text import MISSING, config_value, listing, visible

HERE = Path(__file__).parent
TITLE_CHARACTERS = 80
THEMED = {figures.INK: "currentColor", figures.QUIET: "var(--quiet)"}


def render(found: Findings, drawn: Sequence[tuple[Figure, str]], files: bool) -> str:
    """The page as HTML. Every string from a run is escaped, and its control characters made visible.

    `drawn`: figures with the <svg> element of each. `files`: whether figures and tables lie beside the page.
    """
    css, script = (Markup((HERE / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, finalize=finalize, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"style": style}
    environment.filters["breakable"] = _breakable
    arms, shown = found.arms, browser(found.arms)
    sections = {"summary", "runs", "diagnostics", *(figure.name for figure, _ in drawn)}
    sections |= {name for name, there in (("pairs", found.pairs), ("matched", found.matched), ("figures", drawn),
                                          ("differences", len(arms) > 1)) if there}  # fmt: skip
    return environment.get_template("page.html.j2").render(
        css=css,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=title(arms),
        subtitle=_subtitle(arms),
        found=found,
        files=files,
        sections=sections,
        answers=glance(found),
        columns=views.columns(found),
        cells=[views.cells(summary, found) for summary in found.summaries],
        intervals=views.intervals(found.summaries),
        groups=_groups(drawn),
        how_to_read=how_to_read(arms),
        missing=_missing(arms),
        differences=differences(arms),
        shared=_shared(arms),
        browser=shown,
        sorts={name: metric for name, metric in SORTS.items() if any(name in entry.sorts for entry in shown.entries)},
        runs=_runs(found),
    )


def _groups(drawn: Sequence[tuple[Figure, str]]) -> dict[str, list[tuple[Figure, Markup]]]:
    """Heading -> its figures with their <svg> elements."""
    groups: dict[str, list[tuple[Figure, Markup]]] = {}
    for figure, svg in drawn:
        groups.setdefault(figure.group, []).append((figure, Markup(svg)))
    return groups


def _missing(arms: Sequence[Arm]) -> list[str]:
    """Commands that make the baselines which are not among the runs."""
    kinds = {arm.kind for arm in arms}
    commands = ((TEMPERED, "python -m align.run algo=temperature"), (BEST_OF_N, "python -m align.run algo=best_of_n"))
    return [command for kind, command in commands if kind not in kinds]


def title(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return str(arms[0].seeds[0].record.meta.get("name") or arms[0].label)
    named = [arm for arm in arms if arm.trained] or arms
    names = listing([arm.label for arm in named])
    return names if len(names) <= TITLE_CHARACTERS else f"{len(named)} arms"


def _subtitle(arms: Sequence[Arm]) -> str:
    runs, baselines = sum(len(arm.seeds) for arm in arms), sum(not arm.trained for arm in arms)
    trained = len(arms) - baselines
    parts = [f"{trained} arm{'s' * (trained > 1)}"] if len(arms) > 1 and trained else []
    parts += [f"{baselines} untrained baseline{'s' * (baselines > 1)}"] if baselines else []
    parts += [f"{runs} run{'s' * (runs > 1)}"]
    for key in ("model.name", "data.name"):
        values = list(dict.fromkeys(config_value(arm.config[key]) for arm in arms if key in arm.config))
        parts += [f"{key.split('.')[0]} {values[0]}"] if len(values) == 1 else []
    return ", ".join(parts)


def differences(arms: Sequence[Arm]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
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


def _runs(found: Findings) -> list[dict[str, Any]]:
    rows = [_run(run, arm.label, arm.style) for arm in found.arms for run in arm.seeds]
    return rows + [_run(run, "left out", None) for run in found.left_out]


def _run(run: SeedRun, label: str, style: int | None) -> dict[str, Any]:
    meta = run.record.meta
    short = {name: str(meta.get(name) or MISSING)[:10] for name in ("commit", "start_fingerprint", "data_fingerprint")}
    words = {name: str(meta.get(name) or MISSING) for name in ("device", "dtype")}
    row = {"label": label, "style": style, "seed": config_value(run.seed), "state": run.record.state}
    return row | {"step": MISSING if run.last is None else run.last, "path": str(run.record.path)} | short | words


def style(number: int) -> dict[str, str]:
    """How an arm looks beside its name: the figures' colour and marker."""
    look = figures.look(number)
    return {"colour": THEMED.get(look.colour, look.colour), "glyph": look.glyph}


def _breakable(text: str) -> Markup:
    """Escaped, with places where a long name may break: after a comma, dot, equals sign, underscore or slash."""
    escaped = str(escape(finalize(text)))
    return Markup(re.sub(r"([,.=_/])(?=[^\s\d])", r"\1<wbr>", escaped))


def finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
