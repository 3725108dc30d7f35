"""The rows of a run directory's .jsonl files, read back. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.strict_json import parsed

LINES = ("metrics.jsonl", "samples.jsonl", "events.jsonl")
COUNTERS = ("prompts", "completions", "gen_tokens")


class RunError(ValueError):
    """A run directory cannot be written or read as asked."""


def odd_part(row: Mapping[str, Any]) -> str | None:
    """What `Run.log` cannot have written in a row of metrics.jsonl: counters are whole, the rest numbers or null."""
    for key, value in row.items():
        if key == "phase":
            fits = isinstance(value, str)
        elif key in ("step", *COUNTERS):
            fits = type(value) is int and value >= 0
        else:
            fits = isinstance(value, int | float) or (value is None and key != "seconds")
        if not fits:
            return f"{key}={value!r}"
    return None


def read_lines(path: Path, *, size: int = -1, skip: bool = False) -> list[dict[str, Any]]:
    """Objects of a .jsonl file, or of its first `size` bytes. The last line may be torn (a killed writer) and is then
    ignored.

    Raises RunError naming file and line for any other line that is not a JSON object, in metrics.jsonl not a row; with
    `skip` such lines are left out.
    """
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            text = file.read(size).decode("utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                objects.append(_object(line, path.name == LINES[0]))
        except RunError as error:
            if not skip:
                raise RunError(f"{path}, line {number}: {error}") from None
        except ValueError:
            if number < len(lines) and not skip:
                raise RunError(f"{path}, line {number}: not JSON") from None
    return objects


def _object(line: str, row: bool) -> dict[str, Any]:
    value = parsed(line)
    if not isinstance(value, dict):
        raise RunError(f"expected an object, found {type(value).__name__}")
    if row and (odd := odd_part(value)):
        raise RunError(f"{odd} is nothing that a run writes there")
    return value
