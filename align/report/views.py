"""The summary as table cells, for page and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.report.claims import Claim
from align.report.findings import Findings
from align.report.metrics import CHANGES, ENDS, Metric
from align.report.stats import mean
from align.report.tables import Summary
from align.report.text import MISSING, duration, listing, number


@dataclass(frozen=True)
class Cell:
    """A table cell: what it says, below it by how much that changed, and quietly how sure either is."""

    text: str
    change: str = ""
    note: str = ""
    strong: bool = False


def columns(found: Findings) -> list[tuple[str, str]]:
    """(heading, unit or what stands in it) of the summary, without the metrics that no arm logs."""
    shown = [("seeds", "steps")]
    for metric in _shown(found.summaries):
        shown.append((f"{metric.title}{f', {metric.unit}' if metric.unit else ''}", "step 0 → end, change"))
    shown += [(metric.title.replace(" to the reference", ""), metric.unit) for metric in _ends(found)]
    return [*shown, ("time", "tokens generated")]


def cells(summary: Summary, found: Findings) -> list[Cell]:
    row = [Cell(summary.seeds, note=summary.steps)]
    for metric in _shown(found.summaries):
        start, end, change = summary.start[metric.key], summary.end[metric.key], summary.change[metric.key]
        values = f"{metric.show(mean(start))} → {metric.show(mean(end))}" if start or end else MISSING
        row.append(Cell(values, change.mean, change.interval, change.decided) if change else Cell(values))
    for metric in _ends(found):
        end = summary.end[metric.key]
        row.append(Cell(metric.show(mean(end)), note=metric.interval(end.low, end.high, sign=False) if end else ""))
    tokens, seconds = (summary.counters[name] for name in ("gen_tokens", "seconds"))
    return [*row, Cell(duration(seconds), note=number(tokens, 0) if summary.arm.trained else MISSING)]


def _shown(summaries: Sequence[Summary]) -> list[Metric]:
    return [metric for metric in CHANGES if any(summary.end[metric.key] for summary in summaries)]


def _ends(found: Findings) -> list[Metric]:
    return [metric for metric in (found.kl, *ENDS) if any(summary.end[metric.key] for summary in found.summaries)]


def intervals(summaries: Sequence[Summary]) -> list[str]:
    """What the intervals of the change columns rest on, in sentences."""
    over: dict[str, list[str]] = {}
    for summary in summaries:
        claims = [claim for claim in summary.change.values() if claim]
        kinds = {_basis(claim) for claim in claims if claim.difference.low is not None}
        for basis in sorted(kinds) or (["one seed and no samples at both ends, so no interval"] if claims else []):
            over.setdefault(basis, []).append(summary.arm.label)
    trained = sum(summary.arm.trained for summary in summaries)
    names = {basis: "All arms" if len(who) == trained > 1 else listing(who) for basis, who in over.items()}
    return [f"{names[basis]}: {basis}." for basis in over]


def _basis(claim: Claim) -> str:
    found = claim.difference
    if claim.by_prompts:
        return (
            f"one seed, over {found.prompts} prompts, each prompt's mean at the end against its own at step 0; "
            "it does not say what another training seed would give"
        )
    prompts = f" and {found.prompts} prompts" if found.prompts else ""
    return f"over {found.seeds} seeds{prompts}, each seed's end against its own step 0"
