"""The summary of a comparison: one row per arm, for the page, the terminal and summary.csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from align.report.arms import Arm
from align.report.stats import Estimate, at_step, change, mean
from align.report.text import MISSING, config_value, listing, number


@dataclass(frozen=True)
class Metric:
    """A probe key as tables and figures show it."""

    key: str
    title: str
    unit: str = ""
    decimals: int = 3
    percent: bool = False  # a fraction, shown times 100
    sample_field: str = ""  # where samples.jsonl has it per completion; "" where it does not

    def show(self, value: float | None, *, sign: bool = False) -> str:
        if value is None:
            return MISSING
        return f"{number(100 * value, 0, sign=sign)}%" if self.percent else number(value, self.decimals, sign=sign)

    def interval(self, estimate: Estimate) -> str:
        """[low, high], or nothing where there is none."""
        if estimate.low is None or estimate.high is None:
            return ""
        return f"[{self.show(estimate.low, sign=True)}, {self.show(estimate.high, sign=True)}]"


PROXY = Metric("reward/proxy", "proxy reward", sample_field="reward")
GOLD = Metric("reward/gold", "gold reward", sample_field="gold")
LENGTH = Metric("length/mean", "length", "tokens", 1, sample_field="tokens")
KL_EXACT = Metric("kl/exact", "KL to the reference, exact", "nats per sequence", 2)
KL_K1 = Metric("kl/k1", "KL to the reference, k1", "nats per sequence", 2)
TRUNCATED = Metric("length/truncated", "truncated", percent=True)
WIN = Metric("win/gold", "win rate", percent=True)
GREEDY = Metric("accuracy/greedy", "greedy accuracy", percent=True)
RM_ACCURACY = Metric("rm/accuracy", "reward model accuracy", "held-out pairs", percent=True)
CHANGES = (PROXY, GOLD, LENGTH)
ENDS = (TRUNCATED, WIN, GREEDY, RM_ACCURACY)  # shown as they are at the end, after the KL
COUNTERS = ("prompts", "gen_tokens", "seconds")


@dataclass(frozen=True)
class Summary:
    """One arm in numbers. Metric key -> estimate; a metric that the arm does not log is None."""

    arm: Arm
    start: Mapping[str, Estimate | None]
    end: Mapping[str, Estimate | None]
    change: Mapping[str, Estimate | None]
    counters: Mapping[str, float | None]  # mean over the seeds that reached the end

    @property
    def seeds(self) -> str:
        """ "3", or "2 of 3" where a seed did not reach the arm's end."""
        there, all_seeds = len(self.arm.at_end), len(self.arm.seeds)
        return str(there) if there == all_seeds else f"{there} of {all_seeds}"

    @property
    def steps(self) -> str:
        """ "20", or "10 of 20" where fewer steps were probed than the config asks for."""
        end, planned = self.arm.end, self.arm.config.get("steps")
        if end is None:
            return MISSING
        return str(end) if planned in (end, None) else f"{end} of {config_value(planned)}"

    @property
    def state(self) -> str:
        """ "finished", or how many are what."""
        states = Counter(run.record.state for run in self.arm.seeds)
        return next(iter(states)) if len(states) == 1 else listing([f"{n} {state}" for state, n in states.items()])


def kl_metric(arms: Sequence[Arm]) -> Metric:
    """The KL that all arms with any KL log: exact if they can, k1 otherwise. One page never mixes the two."""
    measured = [arm for arm in arms if arm.logs(KL_EXACT.key) or arm.logs(KL_K1.key)]
    return KL_EXACT if measured and all(arm.logs(KL_EXACT.key) for arm in measured) else KL_K1


def summarise(arm: Arm, kl: Metric) -> Summary:
    metrics = (*CHANGES, kl, *ENDS)
    rows = [run.probes[run.last] for run in arm.at_end if run.last is not None]
    counters = {}
    for name in COUNTERS:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        counters[name] = fmean(values) if values else None
    return Summary(
        arm,
        {metric.key: at_step(arm, 0, metric.key) for metric in metrics},
        {metric.key: at_step(arm, arm.end, metric.key) for metric in metrics},
        {metric.key: change(arm, metric.key, metric.sample_field) for metric in CHANGES},
        counters,
    )


def to_csv(summaries: Sequence[Summary], kl: Metric) -> str:
    """Every number of the summary table at full precision, one row per arm."""
    rows = [_csv_row(summary, kl) for summary in summaries]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(summary: Summary, kl: Metric) -> dict[str, Any]:
    arm = summary.arm
    row: dict[str, Any] = {"arm": arm.label, "state": summary.state, "seeds": len(arm.seeds)}
    row |= {"seeds_at_end": len(arm.at_end), "step": arm.end, "steps_planned": arm.config.get("steps")}
    for metric in (*CHANGES, kl, *ENDS):
        row |= _csv_cells(f"{metric.key} start", summary.start[metric.key])
        row |= _csv_cells(f"{metric.key} end", summary.end[metric.key])
        if metric in CHANGES:
            delta = summary.change[metric.key]
            row |= _csv_cells(f"{metric.key} change", delta)
            row |= {f"{metric.key} change n": delta and delta.n, f"{metric.key} change over": delta and delta.over}
    return row | dict(summary.counters)


def _csv_cells(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    mean, low, high = (estimate.mean, estimate.low, estimate.high) if estimate else (None, None, None)
    return {name: mean, f"{name} low": low, f"{name} high": high}


def terminal_table(summaries: Sequence[Summary], kl: Metric) -> Table:
    """Start -> end and the change with its interval's half-width; fits 80 columns."""
    shown = [metric for metric in CHANGES if any(summary.end[metric.key] for summary in summaries)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold", min_width=12)
    table.add_column(Text(f"{kl.key}\nnats/seq"), justify="right")
    for metric in shown:
        table.add_column(Text(f"{metric.key}\nchange ±95%"), justify="right")
    for summary in summaries:
        about = f"{summary.seeds} seed{'s' * (summary.seeds != '1')}, {summary.steps} steps"
        arm = Text.assemble(summary.arm.label, "\n", (about, "dim"))
        end = summary.end[kl.key]
        table.add_row(arm, kl.show(mean(end)), *(_terminal_cell(summary, metric) for metric in shown))
    return table


def _terminal_cell(summary: Summary, metric: Metric) -> Text:
    start, end, delta = (part[metric.key] for part in (summary.start, summary.end, summary.change))
    # Two decimals are what 80 columns have room for; the page and summary.csv carry more.
    decimals = min(metric.decimals, 2)
    if start is None and end is None:
        return Text(MISSING)
    line = f"{number(mean(start), decimals)} → {number(mean(end), decimals)}"
    if delta is None:
        return Text(line)
    half = f" ±{number(delta.half_width, decimals)}" if delta.half_width is not None else ""
    return Text(f"{line}\n{number(delta.mean, decimals, sign=True)}{half}")
