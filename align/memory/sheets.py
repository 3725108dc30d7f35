"""A calculator's answer: a table, and sentences below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()

    def print(self, console: Console) -> None:
        console.print(self.title, style="bold", markup=False, soft_wrap=True)
        table = Table()
        for i, name in enumerate(self.columns):
            numbers = all(_is_number(row[i]) for row in self.rows)
            table.add_column(escape(name), justify="right" if numbers else "left", no_wrap=numbers)
        for row in self.rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, soft_wrap=True)


def gb(size: float) -> str:
    """In 10^9 bytes, with three digits that count."""
    value = size / 1e9
    digits = 1 if value >= 100 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def _is_number(cell: Any) -> bool:
    return str(cell).strip()[:1].isdigit() or str(cell) in ("", "-")
