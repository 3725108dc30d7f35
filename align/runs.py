"""The run directory: what an experiment leaves behind, and the only thing that comparison tools read.

    config.yaml      the resolved config
    meta.json        versions, device, config hash, fingerprints of data and start weights, what the run is called
    metrics.jsonl    one flushed object per line: phase, step, counters, then the metrics
    samples.jsonl    completions the probe looked at, one per line
    events.jsonl     what a reader should see: numbers that were not finite, exploding ratios, a useless critic
    checkpoints/     what `resume=true` goes on from (align/checkpoints.py)
    adapter/         the trained LoRA adapter (PEFT), or model/ with lora=none
    tensorboard/     events for TensorBoard; other trackers: align/trackers.py     tracker.json   which run of theirs
    vllm.log         what a server of the run's own said; sent/ the adapter that servers have (align/vllm_rollouts.py)
    status.json      {"state": running | finished | failed | interrupted, ...}
    .lock            held by the process that writes here (align/locks.py)

Standard library and PyYAML only. Nothing here knows what a metric means.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from align.files import appending, not_own, write_text
from align.locks import is_empty, lock, unlock
from align.private import scrubbed
from align.refusals import on_one_line
from align.rows import COUNTERS, LINES, RunError, read_lines
from align.strict_json import parsed, parsed_yaml

STATES = ("running", "finished", "failed", "interrupted")
# What differs between two runs of the same config on the same machine; everything else must be equal.
VOLATILE = ("seconds", "time/", "memory/")
# Of a config, how a run is carried out: two that differ only here measure the same thing.
CIRCUMSTANCES = (
    *("run_dir", "runs_root", "resume", "checkpoint", "tracker", "reward_seconds"),
    *(f"sampling.vllm.{key}" for key in ("urls", "python", "arguments", "seconds", "retries")),
)


def need_own(path: Path) -> None:
    """Raises RunError for a run directory in which something is not its own: what a run writes there stays there."""
    try:
        odd = not_own(path)
    except OSError as error:
        raise RunError(f"run_dir={path} cannot be looked into: {error.strerror or error}") from error
    if odd is not None:
        raise RunError(f"run_dir={path}: {on_one_line(str(odd.relative_to(path)))} is a link or a pipe, which no run "
                       "makes; remove it, or name another run_dir")  # fmt: skip


class Run:
    """An open run directory. Use as a context manager: leaving it writes the final state.

    An exception other than KeyboardInterrupt marks the run failed and puts its traceback in `error.log`;
    KeyboardInterrupt marks it interrupted. Both pass on.
    """

    def __init__(self, path: Path):
        self.path = path
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._started = time.monotonic()
        need_own(path)
        held = lock(path)
        if held is None:
            raise RunError(f"run_dir={path}: another process is working in it")
        self._lock = held
        self._files = {name: appending(path / name) for name in LINES}

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], meta: Mapping[str, Any]) -> Self:
        """Open a new run directory. Raises RunError when one with content already stands there."""
        taken = RunError(f"run_dir={path} already exists and is not empty; name another folder or remove it")
        if path.exists() and not (path.is_dir() and is_empty(path)):
            raise taken
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path)
            if (path / "meta.json").exists():  # another process was here between the look and the lock
                unlock(run._lock)
                raise taken
            write_text(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
            write_text(path / "meta.json", json.dumps(dict(meta), indent=1))
            run.status("running")
        except OSError as error:
            raise RunError(f"run_dir={path} cannot be written: {error.strerror or error}") from error
        return run

    @classmethod
    def reopen(cls, path: Path, position: Mapping[str, Any] | None, before: RunRecord | None = None) -> Self:
        """Go on with a run that was cut off: its files are cut back to `position`, so no row stands twice.

        Without a position it starts over. `before` is what the position was chosen by. Raises RunError when the
        directory cannot be written, or another process has gone on with the run since.
        """
        sizes = position["sizes"] if position else dict.fromkeys(LINES, 0)
        try:
            run = cls(path)
            if before is not None and read(path, to_resume=True) != before:
                unlock(run._lock)
                raise RunError(f"run_dir={path}: another process has gone on with it meanwhile; start it again")
            for name, file in run._files.items():  # opened for appending: what is written next stands at the new end
                file.truncate(sizes[name])
            (path / "error.log").unlink(missing_ok=True)
            if position:
                run.counters = dict(position["counters"])
                run._started -= position["seconds"]
            run.status("running")
        except OSError as error:
            raise RunError(f"run_dir={path} cannot be written: {error.strerror or error}") from error
        return run

    def position(self) -> dict[str, Any]:
        """Where the run stands: what `reopen` needs."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must not survive a power cut that its rows do not
        sizes = {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}
        return {"sizes": sizes, "counters": dict(self.counters), "seconds": time.monotonic() - self._started}

    def count(self, *, prompts: int, completions: int, gen_tokens: int) -> None:
        """Add to what the run has consumed so far; every later row carries the totals."""
        self.counters["prompts"] += prompts
        self.counters["completions"] += completions
        self.counters["gen_tokens"] += gen_tokens

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Append one row and flush it. NaN and infinities become null: JSON has no name for them."""
        row: dict[str, Any] = {"phase": phase, "step": step, **self.counters}
        row["seconds"] = round(time.monotonic() - self._started, 3)
        row |= {key: _number(value) for key, value in metrics.items()}
        self._write("metrics.jsonl", [row])
        return row

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append completions (step, prompt id and text, completion, reward, length, ...) and flush them."""
        self._write("samples.jsonl", ({key: _finite(value) for key, value in row.items()} for row in rows))

    def event(self, kind: str, step: int, sentence: str, **details: Any) -> None:
        """Append something that a reader should see, with what it is about."""
        row = {"kind": kind, "step": step, "what": sentence, **details}
        self._write("events.jsonl", [{key: _finite(value) for key, value in row.items()}])

    def _write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            # ASCII: a lone surrogate in a text must not stop a run
            self._files[name].write(json.dumps(dict(row)) + "\n")
        self._files[name].flush()

    def status(self, state: str, **details: Any) -> None:
        assert state in STATES, state
        write_text(self.path / "status.json", json.dumps({"state": state, **self.counters, **details}, indent=1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with ExitStack() as all_of_them:  # one that cannot be flushed must not keep the others open
                for file in self._files.values():
                    all_of_them.callback(file.close)
            self._end(kind, error, trace)
        except OSError as unwritten:
            if error is None:
                raise
            error.add_note(f"{self.path} cannot be written: {unwritten.strerror or unwritten}; once it can, "
                           "resume=true goes on from the last checkpoint")  # fmt: skip
        finally:
            unlock(self._lock)  # last: who takes the run over must read how it ended

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        seconds = round(time.monotonic() - self._started, 3)
        if kind is None:
            self.status("finished", seconds=seconds)
        elif issubclass(kind, KeyboardInterrupt):
            self.status("interrupted", seconds=seconds)
        else:
            import traceback

            write_text(self.path / "error.log", scrubbed("".join(traceback.format_exception(kind, error, trace))))
            if error is not None:
                error.add_note(f"The traceback is in {self.path / 'error.log'}")
            self.status("failed", seconds=seconds, error=scrubbed(f"{kind.__name__}: {error}"))


@dataclass(frozen=True)
class RunRecord:
    """A run directory as read back. `state` is that of `status.json`, or "unknown" when there is none."""

    path: Path
    config: Mapping[str, Any]
    meta: Mapping[str, Any]
    state: str
    rows: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...] = field(default=())

    def phase(self, name: str) -> list[Mapping[str, Any]]:
        """Rows of one phase ("probe", "train"), in the order written."""
        return [row for row in self.rows if row.get("phase") == name]


def read(path: Path, *, samples: bool = False, to_resume: bool = False) -> RunRecord:
    """Read a run directory, finished or not. A torn last line is ignored. Raises RunError when it is not one.

    `to_resume`: rows that are damaged are left out, and a status.json that is says nothing. What is gone on from is cut
    back to a checkpoint whose rows are whole (align/places.py).
    """
    try:
        if not (path / "config.yaml").is_file() or not (path / "meta.json").is_file():
            raise RunError(f"{path} is not a run directory: it has no config.yaml and meta.json")
        config = parsed_yaml((path / "config.yaml").read_text("utf-8"))
        meta = parsed((path / "meta.json").read_text("utf-8"))
        status = _status(path / "status.json", to_resume)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged: {on_one_line(str(error))}") from error
    if not all(isinstance(part, dict) for part in (config, meta, status)):
        raise RunError(f"{path} is damaged: config.yaml, meta.json and status.json must each hold one mapping")
    rows = tuple(read_lines(path / "metrics.jsonl", skip=to_resume))
    told = tuple(read_lines(path / "samples.jsonl")) if samples else ()
    return RunRecord(path, config, meta, state_of(status), rows, told)


def _status(path: Path, to_resume: bool) -> Any:
    try:
        status = parsed(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError:
        if not to_resume:
            raise
        return {}
    return {} if to_resume and not isinstance(status, dict) else status


def state_of(status: Mapping[str, Any]) -> str:
    """What status.json says, or "unknown"."""
    state = status.get("state")
    return state if state in STATES else "unknown"


def stable(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row that two runs of the same config and seed on one machine must share."""
    return {key: value for key, value in row.items() if not key.startswith(VOLATILE)}


def _finite(value: Any) -> Any:
    """Numbers that JSON has no name for become null, in a mapping too."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | int | None:
    if isinstance(value, bool | int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
