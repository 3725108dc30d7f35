"""The rows as a person reads them, in a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from align.bench.summary import Row
from align.report.text import MISSING, number

NOTE = """\
s: seconds of an optimizer step, median. faster: TRL's time / ours (least to greatest of rounds).
tok/s: tokens generated and trained on, per second. GB: peak of the process, libraries included.
limit: the least time this machine could take ({flops:,.0f} GFLOP/s, {bytes:.1f} GB/s), and our time over it.
GRPO: our time / ours of GRPO on the same completions.
"""


def table(rows: Sequence[Row]) -> Table:
    made = Table(show_edge=False, pad_edge=False, header_style="bold", box=None, collapse_padding=True)
    made.add_column("work", no_wrap=True)
    for name in ("ours s", "TRL s", "faster", "tok/s", "TRL", "GB", "TRL", "ratio", "limit s", "of it", "GRPO"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(row.work, *_cells(row))
    return made


def note(rows: Sequence[Row]) -> str:
    machine = rows[0].machine
    return NOTE.format(flops=machine["flops"] / 1e9, bytes=machine["bytes"] / 1e9)


def _cells(row: Row) -> list[str]:
    return [
        number(row.ours_s, 2),
        number(row.trl_s, 2),
        _spread(row),
        number(row.ours_tokens_per_s, 0),
        number(row.trl_tokens_per_s, 0),
        number(row.ours_peak_gb, 2),
        number(row.trl_peak_gb, 2),
        number(row.peak_ratio, 2),
        number(row.limit_s, 2),
        f"{number(row.limit_ratio, 1)}x",
        MISSING if row.grpo_ratio is None else f"{number(row.grpo_ratio, 2)}x",
    ]


def _spread(row: Row) -> str:
    if row.speedup is None:
        return MISSING
    return f"{row.speedup:.1f}x ({row.speedup_low:.1f} to {row.speedup_high:.1f})"
