"""A run directory that is being written: read as it grows, each line once. Standard library and PyYAML only."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align import runs
from align.locks import held
from align.rows import LINES, RunError, odd_part
from align.strict_json import parsed

WINDOW = 20  # rows that speed and time left are taken from
SILENCE = 5.0  # seconds without a new row after which somebody should look whether the run still lives
MARK = 256  # bytes before the end that must be the same when more is read
FILES = ("config.yaml", "meta.json")  # by which a run directory is known
STOPPED = "stopped"  # says it is running, and no process holds it


class Tail:
    """The objects of a growing .jsonl file. A line without its end waits; a file cut back by a resume is read anew."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._end, self._mark = 0, b""

    def poll(self) -> bool:
        """Read what was appended. -> whether there was anything new"""
        try:
            if not self.path.is_file():  # nor a pipe, which would be waited for
                raise FileNotFoundError
            with self.path.open("rb") as file:
                file.seek(self._end - len(self._mark))
                data = file.read()
        except OSError:  # not there yet, or nothing that can be read
            data = b""
        if not data.startswith(self._mark):  # shorter, or cut back and grown again
            self.rows, self._end, self._mark = [], 0, b""
            self.poll()
            return True
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) <= len(self._mark):
            return False
        for line in whole[len(self._mark) :].decode("utf-8", errors="replace").splitlines():
            try:
                row = parsed(line)
            except ValueError:
                continue  # a torn line that a killed writer left, and another went on after
            if isinstance(row, dict) and (self.path.name != LINES[0] or not odd_part(row)):
                self.rows.append(row)
        self._end += len(whole) - len(self._mark)
        self._mark = whole[-MARK:]
        return True


class Watched:
    """What a run directory says now. Raises RunError when it is not one."""

    def __init__(self, path: Path):
        record = runs.read(path)
        self.path, self.config, self.meta = path, record.config, record.meta
        self.state, self.error = record.state, ""
        self.metrics, self.events = Tail(path / "metrics.jsonl"), Tail(path / "events.jsonl")
        self._looked = -SILENCE  # time.monotonic() may count from when the machine was started
        self._wrote, self._since = -1.0, 0.0  # when it last wrote: by its files, and by time.monotonic() here

    def poll(self) -> None:
        self.metrics.poll()
        self.events.poll()
        before, status = self.state, _object(self.path / "status.json")
        self.state, self.error = runs.state_of(status), str(status.get("error", ""))
        if self.state not in ("running", "unknown") or self.age < SILENCE:
            return
        if before == STOPPED:
            self.state = STOPPED  # not asked again before it writes: looking takes the lock for a moment
        elif time.monotonic() - self._looked > SILENCE:
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        # a run says how it ended before it lets go of its lock
        if held(self.path) is False and runs.state_of(_object(self.path / "status.json")) in ("running", "unknown"):
            self.state = STOPPED

    @property
    def over(self) -> bool:
        return self.state in ("finished", "failed", "interrupted", STOPPED)

    @property
    def title(self) -> str:
        return f"{self.meta.get('name', self.path.name)}  seed {self.config.get('seed')}"

    @property
    def steps(self) -> int:
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def step(self) -> int:
        return int(self.metrics.rows[-1].get("step", 0)) if self.metrics.rows else 0

    @property
    def age(self) -> float:
        """Seconds since it last wrote. The clock of the day is asked once for each time that it wrote: it may be set
        meanwhile, and files may be of its future; those count as silent, so that somebody looks."""
        wrote = max(_modified(self.path / name) for name in ("metrics.jsonl", "status.json"))
        if wrote != self._wrote:
            ago = time.time() - wrote
            self._wrote, self._since = wrote, time.monotonic() - (ago if ago > -1 else SILENCE)
        return max(0.0, time.monotonic() - self._since)

    def phase(self, name: str) -> list[Mapping[str, Any]]:
        return [row for row in self.metrics.rows if row.get("phase") == name]

    def rate(self, key: str) -> float | None:
        """What a counter (step, gen_tokens) grew by per second over the last rows; None before there are two."""
        rows = self.metrics.rows[-WINDOW:]
        if len(rows) < 2:
            return None
        seconds = rows[-1].get("seconds", 0) - rows[0].get("seconds", 0)
        grown = rows[-1].get(key, 0) - rows[0].get(key, 0)
        return grown / seconds if seconds > 0 and grown > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds to the end at the speed of the last rows."""
        speed = self.rate("step")
        return None if self.over or speed is None else max(0.0, (self.steps - self.step) / speed)


def series(rows: list[Mapping[str, Any]], key: str) -> list[float]:
    """The values of a key, without rows that lack it or have none that is finite."""
    return [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]


def find(path: Path) -> list[Path]:
    """The run directory itself, or those in a folder and in its folders (runs/, runs/stages/), sorted by name.

    Folders in it that cannot be looked into are passed over. Raises RunError when there is none.
    """
    if is_run(path):
        return [path]
    if not path.is_dir():
        raise RunError(f"{path}: no such run directory")
    found = sorted({file.parent for glob in ("*/meta.json", "*/*/meta.json") for file in path.glob(glob)})
    found = [folder for folder in found if is_run_to_read(folder)]
    if not found:
        listed(path)  # says when that is why
        raise RunError(f"{path} is not a run directory, and there is none in it")
    return found


def is_run(path: Path) -> bool:
    """Raises RunError for a folder that cannot be looked into, another user's."""
    try:
        return all((path / name).is_file() for name in FILES)
    except OSError as error:
        raise _closed(path, error) from error


def is_run_to_read(path: Path) -> bool | None:
    """As `is_run`, of one among others: None for a run that cannot be read, which must not stop the others."""
    try:
        there = is_run(path)
    except RunError:
        return None
    return there if not there or all(os.access(path / name, os.R_OK) for name in FILES) else None


def listed(path: Path) -> list[Path]:
    """What is in a folder, sorted. Raises RunError for one that cannot be looked into."""
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise _closed(path, error) from error


def _closed(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be looked into: {error.strerror or error}")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parsed(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _modified(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
