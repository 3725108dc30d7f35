"""How a watched run looks: pure functions from what its files say to what rich prints, from 60 columns up."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from align.report.text import MISSING, duration, one_line
from align.terminal import SUMMARY
from align.watched import STOPPED, Watched, series

# Of training rows, in this order: name, format, keys (the first one that the run logs is taken).
TRAIN = (
    ("reward", "{:.3g}", ("reward/mean",)),
    ("accuracy", "{:.2f}", ("rm/accuracy", "pref/accuracy")),
    ("KL", "{:.3g}", ("kl/k1",)),
    ("length", "{:.1f}", ("length/mean",)),
    ("entropy", "{:.3g}", ("policy/entropy",)),
    ("loss", "{:.3g}", ("loss",)),
    ("grad norm", "{:.3g}", ("optim/grad_norm",)),
    ("critic explains", "{:.2f}", ("critic/explained_variance",)),
    ("zero signal", "{:.2f}", ("group/zero_signal",)),
)
# Of probes, one line each in a sweep.
PROBED = (
    ("reward", "{:.3g}", ("reward/proxy", "rm/accuracy")),
    ("KL", "{:.3g}", ("kl/exact", "kl/bound")),
    ("length", "{:.1f}", ("length/mean",)),
)
STYLES = {"running": "green", "finished": "bold green", "failed": "bold red", "interrupted": "yellow", STOPPED: "red"}
GOES_ON = "resume=true goes on"
ENDED = {"interrupted": f" - {GOES_ON}", STOPPED: f" without saying so - {GOES_ON}"}
BLOCKS = "▁▂▃▄▅▆▇█"
WIDE = 110  # columns from which training and probes stand side by side
SPARK = 40  # values that a course has at most
EVENTS, TRACE = 3, 4  # lines shown of each
LOG = 2**16  # bytes of error.log, at its end, that are looked at


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of the values in blocks from their lowest to their highest; many are averaged into `width` parts."""
    if len(values) > width:
        bounds = [i * len(values) // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low or not math.isfinite(high - low):
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[min(7, int(8 * (value - low) / (high - low)))] for value in values)


def one_run(run: Watched, width: int) -> list[RenderableType]:
    """Everything about one run."""
    train, probes = _train(run.phase("train"), width), _probes(run.phase("probe"), width)
    tables = [table for table in (train, probes) if table.row_count]
    if len(tables) == 2 and width >= WIDE:
        side = Table.grid(padding=(0, 3))
        side.add_row(*tables)
        tables = [side]
    waiting = [] if run.metrics.rows else [Text("no row yet: the first comes with the probe at step 0", "dim")]
    apart = [part for table in tables for part in (Text(""), table)]
    return [*_head(run), *_error(run), *waiting, *_events(run.events.rows), *apart]


def _head(run: Watched) -> list[RenderableType]:
    title = Text.assemble((one_line(run.title), "bold"), "  ", _state(run))
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    left = "" if run.left is None else f"{duration(run.left)} left"
    done = min(run.step, run.steps) if run.steps else 0
    bar.add_row(f"step {run.step}/{run.steps}", ProgressBar(total=max(run.steps, 1), completed=done), left)
    last = run.metrics.rows[-1] if run.metrics.rows else {}
    speed, tokens, peak = run.rate("step"), run.rate("gen_tokens"), last.get("memory/peak_gb")
    facts = (
        f"last row {duration(run.age)} ago" if last and not run.over else "",
        f"{duration(last['seconds'])} so far" if "seconds" in last else "",
        f"{1 / speed:.3g} s/step" if speed else "",
        f"{tokens:,.0f} tokens/s" if tokens else "",
        f"peak {peak:.1f} GB" if isinstance(peak, float | int) else "",
    )
    return [title, bar, Text("  ".join(filter(None, facts)), "dim")]


def _state(run: Watched) -> tuple[str, str]:
    return run.state + ENDED.get(run.state, ""), STYLES.get(run.state, "")


def _error(run: Watched) -> list[RenderableType]:
    """The end of a failed run's traceback, and where all of it is."""
    log = run.path / "error.log"
    if run.state != "failed":
        return []
    lines = _last_lines(log) or [run.error]
    where = Text(f"traceback: {one_line(str(log))}", "dim", overflow="fold")
    return [*(_line(Text(one_line(line), "red")) for line in lines), where]


def _last_lines(path: Path) -> list[str]:
    try:
        if not path.is_file():  # a pipe would be waited for, a device never ends
            return []
        with path.open("rb") as file:
            file.seek(-min(LOG, file.seek(0, os.SEEK_END)), os.SEEK_END)
            text = file.read(LOG).decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-TRACE:]


def _train(rows: list[Mapping[str, Any]], width: int) -> Table:
    table = _table(f"training, step {rows[-1].get('step')}" if rows else "training", "now", "so far")
    for name, form, keys in TRAIN:
        key = next((k for k in keys if series(rows, k)), None)
        if key is not None:
            now = rows[-1].get(key)  # what the last row lacks is not shown as if it were of now
            table.add_row(name, MISSING if now is None else form.format(now), _course(rows, key, width, taken=32))
    return table


def _probes(rows: list[Mapping[str, Any]], width: int) -> Table:
    first = [f"step {rows[0].get('step')}"] if len(rows) > 1 else []
    table = _table("probe", *first, f"step {rows[-1].get('step')}" if rows else "", *(["so far"] if first else []))
    for key in SUMMARY:
        if series(rows, key):
            cells = [_cell(row.get(key)) for row in ([rows[0], rows[-1]] if first else rows)]
            table.add_row(key, *cells, *([_course(rows, key, width, taken=42)] if first else []))
    return table


def _course(rows: list[Mapping[str, Any]], key: str, width: int, taken: int) -> str:
    """A sparkline in what the other columns leave of the width."""
    own = width // 2 if width >= WIDE else width
    return sparkline(series(rows, key), max(8, min(SPARK, own - taken)))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else MISSING


def _table(name: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column == "so far" else "right", no_wrap=True)
    return table


def _events(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """The latest events; they may quote what a model wrote."""
    shown = [Text(one_line(f"! {row.get('what', row.get('kind'))}"), "yellow") for row in rows[-EVENTS:]]
    more = len(rows) - len(shown)
    note = [Text(f"{more} earlier event{'s' * (more > 1)} in events.jsonl", "dim")] if more else []
    return [*note, *shown]


def sweep(runs: Sequence[Watched], width: int) -> Table:
    """One line each, the live ones first; the numbers are those of the last probe."""
    columns: list[tuple[str, Callable[[Watched], Text | str]]] = [
        ("state", lambda run: Text(run.state, STYLES.get(run.state, ""))),
        ("step", lambda run: f"{run.step}/{run.steps}"),
    ]
    if width >= 80:
        columns.append(("left", lambda run: "" if run.left is None else duration(run.left)))
    if width >= 100:
        columns.append(("last row", lambda run: "" if run.over else f"{duration(run.age)} ago"))
        columns.append(("events", lambda run: str(len(run.events.rows) or "")))
    for name, form, keys in PROBED[: 2 if width < 80 else None]:
        columns.append((name, lambda run, form=form, keys=keys: _last_probed(run, form, keys)))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    for name, _ in columns:
        table.add_column(name, no_wrap=True, justify="left" if name == "state" else "right")
    for run in sorted(runs, key=lambda run: (run.over, run.path.name)):
        table.add_row(Text(one_line(run.path.name), overflow="ellipsis"), *(cell(run) for _, cell in columns))
    return table


def _last_probed(run: Watched, form: str, keys: Sequence[str]) -> str:
    probes = run.phase("probe")
    value = next((probes[-1][key] for key in keys if probes and isinstance(probes[-1].get(key), int | float)), None)
    return "" if value is None else form.format(value)


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
