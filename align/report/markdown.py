"""The comparison as Markdown: what the page says in sentences and tables, for a pull request or a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from align.report import views
from align.report.findings import Findings
from align.report.glance import glance
from align.report.levels import Matched, Row
from align.report.page import differences, title
from align.report.text import MISSING, one_line

# Every character that Markdown or the HTML in it could obey.
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|!~&$@])")


def escape(text: str) -> str:
    """One line that shows as it is: markup, table borders, code and links are characters."""
    return _SPECIAL.sub(r"\\\1", one_line(text)).replace(r"\<", "&lt;").replace(r"\>", "&gt;").replace(r"\&", "&amp;")


def to_markdown(found: Findings) -> str:
    parts = [f"# {escape(title(found.arms))}", *_warnings(found), "## At a glance"]
    for answer in glance(found):
        parts.append("\n".join([f"**{escape(answer.question)}**", *(f"- {escape(line)}" for line in answer.lines)]))
    parts += ["## Summary", _summary(found)]
    parts += ["## Arm against arm", _pairs(found)] if found.pairs else []
    for table in found.matched:
        against = f"After the semicolon: difference from {table.levels[0].against}."
        parts += [f"## At the same {escape(table.axis.title)}", _matched(table), escape(against)]
    parts += ["## What differs", *_differences(found)] if len(found.arms) > 1 else []
    parts += ["## Diagnostics", _diagnostics(found)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    shown = [[cell if cell == "---" else escape(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def _warnings(found: Findings) -> list[str]:
    return ["## Warnings", "\n".join(f"- {escape(warning)}" for warning in found.warnings)] if found.warnings else []


def _summary(found: Findings) -> str:
    head = ["arm", *(f"{name} ({unit})" if unit else name for name, unit in views.columns(found))]
    rows = []
    for summary in found.summaries:
        cells = (" ".join(filter(None, (c.text, c.change, c.note))) for c in views.cells(summary, found))
        rows.append([summary.arm.label, *cells])
    return _table(head, rows)


def _pairs(found: Findings) -> str:
    head = ("arm", "minus", "metric", "verdict", "difference", "95%", "p (Holm)", "rests on")
    rows = (
        (pair.arm.label, pair.other.label, claim.metric.title, claim.verdict, claim.mean, claim.interval or MISSING,
         claim.shown_p or MISSING, claim.basis)
        for pair in found.pairs for claim in (row.claim for row in pair.rows)
    )  # fmt: skip
    return _table(head, rows)


def _matched(table: Matched) -> str:
    head = ["level", "arm", *(metric.title for metric in table.metrics)]
    rows = [[level.says, row.arm.label, *_at(table, row)] for level in table.levels for row in level.rows]
    return _table(head, rows)


def _at(table: Matched, row: Row) -> list[str]:
    cells = []
    for metric in table.metrics:
        cell = row.cells[metric.key]
        if cell.value is None:
            cells.append("does not get there" if not row.seeds else MISSING)
            continue
        shown = f"{metric.show(cell.value.mean)} {metric.interval(cell.value.low, cell.value.high, sign=False)}"
        claim = cell.claim
        change = f"; {' '.join(filter(None, (claim.mean, claim.interval)))} {claim.verdict}" if claim else ""
        cells.append(shown.strip() + change)
    return cells


def _differences(found: Findings) -> list[str]:
    head = ["key", *(arm.label for arm in found.arms)]
    return [_table(head, ([key, *values] for key, values in rows)) for rows in differences(found.arms) if rows]


def _diagnostics(found: Findings) -> str:
    if not found.fired:
        return "No alarm fired. That is no proof that all is well."
    head = ("arm", "kind", "first step", "what", "seeds", "times")
    rows = ((f.arm.label, f.kind, str(f.step), f.what, f.where or "1", str(f.times)) for f in found.fired)
    return _table(head, rows) + "\n\nDiagnostics by declared rules (docs/metrics.md), not findings."
