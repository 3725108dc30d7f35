"""The summary of a comparison: one row per arm, for the page, the terminal and summary.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from align.report.arms import Arm
from align.report.claims import Claim, judged
from align.report.csvs import as_csv
from align.report.metrics import CHANGES, ENDS, Metric, change, kl_of
from align.report.stats import Estimate, at_step, mean
from align.report.text import MISSING, config_value, listing, number

COUNTERS = ("prompts", "gen_tokens", "seconds")


@dataclass(frozen=True)
class Summary:
    """One arm in numbers. Metric key -> estimate; a metric that the arm does not log is None.

    Under the page's KL key stands the arm's own KL: of best-of-n, its analytic bound.
    """

    arm: Arm
    start: Mapping[str, Estimate | None]
    end: Mapping[str, Estimate | None]
    change: Mapping[str, Claim | None]
    counters: Mapping[str, float | None]  # mean over the seeds that reached the end

    @property
    def seeds(self) -> str:
        """ "3", or "2 of 3" where a seed did not reach the arm's end."""
        there, all_seeds = len(self.arm.at_end), len(self.arm.seeds)
        return str(there) if there == all_seeds else f"{there} of {all_seeds}"

    @property
    def steps(self) -> str:
        """ "20 steps", or "10 of 20 steps" where fewer were probed than the config asks for; of a baseline, n or T."""
        end, planned = self.arm.end, self.arm.config.get("steps")
        if end is None:
            return MISSING
        if not self.arm.trained:
            return f"{self.arm.setting(self.arm.steps[0])} → {self.arm.setting(end)}"
        return f"{end if planned in (end, None) else f'{end} of {config_value(planned)}'} steps"

    @property
    def state(self) -> str:
        """ "finished", or how many are what."""
        states = Counter(run.record.state for run in self.arm.seeds)
        return next(iter(states)) if len(states) == 1 else listing([f"{n} {state}" for state, n in states.items()])


def summarise(arms: Sequence[Arm], kl: Metric) -> list[Summary]:
    """One row per arm. An arm's change is bold when it survives Holm over the arms."""
    claims = judged({(n, m): (m, change(arm, m)) for n, arm in enumerate(arms) for m in CHANGES if arm.trained})
    return [_summary(arm, kl, {m.key: claims.get((n, m)) for m in CHANGES}) for n, arm in enumerate(arms)]


def _summary(arm: Arm, kl: Metric, changes: Mapping[str, Claim | None]) -> Summary:
    own_kl = kl_of(arm, kl)
    rows = [run.probes[run.last] for run in arm.at_end if run.last is not None]
    counters = {}
    for name in COUNTERS:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        counters[name] = fmean(values) if values else None
    metrics = (*CHANGES, *ENDS)
    return Summary(
        arm,
        {metric.key: at_step(arm, 0, metric.key) for metric in metrics} | {kl.key: at_step(arm, 0, own_kl.key)},
        {metric.key: at_step(arm, arm.end, metric.key) for metric in metrics}
        | {kl.key: at_step(arm, arm.end, own_kl.key)},
        changes,
        counters,
    )


def to_csv(summaries: Sequence[Summary], kl: Metric) -> str:
    """Every number of the summary table at full precision, one row per arm."""
    return as_csv(_csv_row(summary, kl) for summary in summaries)


def _csv_row(summary: Summary, kl: Metric) -> dict[str, Any]:
    arm = summary.arm
    row: dict[str, Any] = {"arm": arm.label, "trained": arm.trained, "state": summary.state, "seeds": len(arm.seeds)}
    row |= {"seeds_at_end": len(arm.at_end), "step": arm.end, "steps_planned": arm.config.get("steps")}
    for metric in (*CHANGES, kl, *ENDS):
        row |= _csv_cells(f"{metric.key} start", summary.start[metric.key])
        row |= _csv_cells(f"{metric.key} end", summary.end[metric.key])
        if metric in CHANGES:
            row |= _csv_change(f"{metric.key} change", summary.change[metric.key])
    return row | dict(summary.counters)


def _csv_change(name: str, claim: Claim | None) -> dict[str, Any]:
    d = claim.difference if claim else None
    row: dict[str, Any] = {name: d and d.mean, f"{name} low": d and d.low, f"{name} high": d and d.high}
    row |= {f"{name} p": d and d.p, f"{name} p holm": claim and claim.p, f"{name} verdict": claim and claim.verdict}
    return row | {f"{name} {part}": d and getattr(d, part) for part in ("seeds", "prompts", "by")}


def _csv_cells(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    mean, low, high = (estimate.mean, estimate.low, estimate.high) if estimate else (None, None, None)
    return {name: mean, f"{name} low": low, f"{name} high": high}


def terminal_table(summaries: Sequence[Summary], kl: Metric) -> Table:
    """Start -> end and the interval of the change; fits 80 columns."""
    shown = [metric for metric in CHANGES if any(summary.end[metric.key] for summary in summaries)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold", min_width=12)
    table.add_column(Text(f"{kl.key}\nnats/seq"), justify="right")
    for metric in shown:
        table.add_column(Text(f"{metric.key}\nchange, 95%"), justify="right")
    for summary in summaries:
        about = f"{summary.seeds} seed{'s' * (summary.seeds != '1')}, {summary.steps}"
        arm = Text.assemble(summary.arm.label, "\n", (about, "dim"))
        end = summary.end[kl.key]
        table.add_row(arm, kl.show(mean(end)), *(_terminal_cell(summary, metric) for metric in shown))
    return table


def _terminal_cell(summary: Summary, metric: Metric) -> Text:
    start, end, delta = summary.start[metric.key], summary.end[metric.key], summary.change[metric.key]
    # Two decimals are what 80 columns have room for; the page and summary.csv carry more.
    decimals = min(metric.decimals, 2)
    if start is None and end is None:
        return Text(MISSING)
    line = f"{number(mean(start), decimals)} → {number(mean(end), decimals)}"
    if delta is None:
        return Text(line)
    low, high = delta.difference.low, delta.difference.high
    if low is None or high is None:
        return Text(f"{line}\n{number(delta.difference.mean, decimals, sign=True)}")
    edges = (number(edge, decimals, sign=True) for edge in (low, high))
    return Text(f"{line}\n[{', '.join(edges)}]")
