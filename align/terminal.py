"""What a person sees while a run goes on: one line of what will run, a bar, a short table, the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from align.report.text import visible

# Shown beside the bar when a row has them, in this order: short name, format, keys (the first one present is taken).
SHOWN = (
    ("reward", "{:.3g}", ("reward/mean", "reward/proxy")),
    ("acc", "{:.2f}", ("accuracy/sampled", "rm/accuracy", "pref/accuracy")),
    ("KL", "{:.3g}", ("kl/exact", "kl/k1", "kl/bound")),
    ("length", "{:.0f}", ("length/mean",)),
    ("loss", "{:.3g}", ("loss",)),
)
# Rows of the closing table; what a run did not measure is left out.
SUMMARY = ("reward/proxy", "reward/gold", "win/gold", "accuracy/sampled", "accuracy/greedy", "rm/accuracy",
           "rm/gold_accuracy", "pref/accuracy", "kl/exact", "kl/bound", "length/mean", "length/truncated",
           "text/rep3")  # fmt: skip


class Terminal:
    """A progress bar on a terminal; a line every tenth of the run where output is not a terminal (logs, CI)."""

    def __init__(self, title: str, steps: int, *, silent: bool = False):
        self.console = Console(stderr=True, highlight=False, quiet=silent)
        self.title, self.steps = title, steps
        self.probes: list[tuple[int, Mapping[str, float]]] = []
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=silent or not self.console.is_terminal
        )
        self.task = self.progress.add_task("probe", total=steps, shown="")

    def note(self, text: str) -> None:
        self.console.print(visible(text), markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self.note(self.title)
        self.progress.start()
        return self

    def probing(self, step: int) -> None:
        self.progress.update(self.task, description=f"probe at {step}")

    def row(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """A row has been logged."""
        if phase == "probe":
            self.probes.append((step, dict(metrics)))
        shown = "  ".join(  # of this row alone: what the last probe said must not stand beside later training
            f"{name} {form.format(metrics[key])}"
            for name, form, keys in SHOWN
            if (key := next((k for k in keys if k in metrics), None))
        )
        self.progress.update(self.task, completed=step, description=phase, shown=shown)
        if self.progress.disable and (phase == "probe" or step % max(self.steps // 10, 1) == 0):
            self.note(f"  {phase} {step}/{self.steps}  {shown}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.probes:
            self.console.print(summary_table(self.probes))


def summary_table(probes: list[tuple[int, Mapping[str, float]]]) -> Table:
    """First, and last, probe side by side."""
    (first, before), (last, after) = probes[0], probes[-1]
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("probe")
    table.add_column(f"step {first}", justify="right")
    if last != first:
        table.add_column(f"step {last}", justify="right")
    for key in SUMMARY:
        if key in before or key in after:
            cells = [before.get(key), after.get(key)] if last != first else [before.get(key)]
            table.add_row(key, *("" if value is None else f"{value:.3f}" for value in cells))
    return table
