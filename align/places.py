"""Which folder a run has: a new one, or with `resume=true` that of the run of this config that was cut off."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from align import locks
from align.config import config_hash, plain
from align.refusals import on_one_line
from align.rows import COUNTERS, LINES, RunError, read_lines
from align.runs import CIRCUMSTANCES, RunRecord, need_own, read
from align.schema import Experiment
from align.strict_json import parsed_yaml

if TYPE_CHECKING:
    from align.checkpoints import Snapshot


@dataclass(frozen=True)
class Place:
    """The run directory; `before` is what an earlier start of this run left there."""

    path: Path
    before: RunRecord | None = None

    @property
    def finished(self) -> bool:
        return self.before is not None and self.before.state == "finished"

    @property
    def complete(self) -> bool:
        """Finished, its page included, which is written last."""
        return self.finished and (self.path / "report.html").is_file()


def place(experiment: Experiment) -> Place:
    """Raises RunError when run_dir is taken, or holds another experiment than the one to go on with."""
    try:
        return _place(experiment)
    except OSError as error:  # another user's
        where = error.filename or experiment.run_dir or experiment.runs_root
        raise RunError(f"{where} cannot be used: {error.strerror or error}") from error


def _place(experiment: Experiment) -> Place:
    if experiment.run_dir is not None:
        path = Path(experiment.run_dir).expanduser()
        if not path.exists() or (path.is_dir() and locks.is_empty(path)):
            return Place(path)
        if not experiment.resume:
            raise RunError(f"run_dir={path} already exists and is not empty; resume=true goes on with it, or name "
                           "another folder")  # fmt: skip
        return _earlier(path, experiment)
    digest = config_hash(plain(experiment))[:6]
    names = (experiment.algo.name, experiment.model.name, experiment.data.name)
    root, name = Path(experiment.runs_root).expanduser(), "-".join((*names, f"s{experiment.seed}", digest))
    free = free_name(root, name)
    number = 1 if free.name == name else int(free.name.rpartition("-")[2])
    if not experiment.resume or number == 1:
        return Place(free)
    return _earlier(root / (name if number == 2 else f"{name}-{number - 1}"), experiment)


def free_name(root: Path, name: str) -> Path:
    """`root/name`, or `root/name-2`, `-3`, ... when that is taken."""
    path, number = root / name, 2
    while path.exists():
        path, number = root / f"{name}-{number}", number + 1
    return path


def _earlier(path: Path, experiment: Experiment) -> Place:
    here = plain(experiment)
    if not (path / "meta.json").is_file():  # stopped before it was open
        if not path.is_dir() or not all(_begun(file, here) for file in path.iterdir()):
            raise RunError(f"run_dir={path} is not a run directory: there is nothing to go on with")
        if _cleared(path):
            return Place(path)
    before = read(path, to_resume=True)
    if before.state == "finished":  # nothing of it will be cut: its rows are its result
        before = read(path)
    if before.state == "unknown" and (path / "report.html").is_file():
        raise RunError(f"run_dir={path} is damaged: it has the page of a finished run, and its status.json does "
                       'not say so; write {"state": "finished"} into that')  # fmt: skip
    if config_hash(before.config) != config_hash(here):
        different = on_one_line(", ".join(_differences(before.config, here, "")))
        raise RunError(f"run_dir={path} is another experiment: it differs in {different}; a run goes on as it began")
    return Place(path, before)


def _cleared(path: Path) -> bool:
    """Remove what a start left that was stopped before its run was open; False: it was not, it has opened the run."""
    handle = locks.lock(path)
    if handle is None:
        raise RunError(f"run_dir={path}: another process is just opening it")
    try:
        opened = (path / "meta.json").is_file()
        for file in path.iterdir() if not opened else ():
            if file.name != locks.FILE:
                file.unlink()
    finally:
        locks.unlock(handle)
    return not opened


def _begun(file: Path, here: Mapping[str, Any]) -> bool:
    """Whether a file is of a start of this experiment that was stopped before meta.json was written, and can go."""
    if file.is_symlink():
        return False
    if file.name in (*LINES, locks.FILE):
        return file.is_file() and file.stat().st_size == 0
    if file.name != "config.yaml":
        return file.is_file() and re.fullmatch(r"(config\.yaml|meta\.json)\.\d+\.tmp", file.name) is not None
    try:
        there = parsed_yaml(file.read_text("utf-8")) if file.is_file() else None
        return isinstance(there, dict) and config_hash(there) == config_hash(here)
    except (OSError, ValueError, yaml.YAMLError):
        return False


def _differences(one: Any, other: Any, key: str) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = [n for n in {**one, **other} if f"{key}.{n}".lstrip(".") not in CIRCUMSTANCES]
        sides = [(one.get(n, "unset"), other.get(n, "unset"), f"{key}.{n}".lstrip(".")) for n in names]
        return [difference for side in sides for difference in _differences(*side)]
    return [] if one == other else [f"{key} ({one} there, {other} here)"]


def newest(where: Place, meta: Mapping[str, Any]) -> Snapshot | None:
    """The checkpoint to go on from; None: there is none, start over.

    Raises RunError when start weights or data are no longer what the run began with: its reference would be another.
    """
    from align.checkpoints import snapshots  # needs torch; a sweep finds its finished runs without

    if where.before is None:
        return None
    need_own(where.path)  # before anything in its checkpoints is opened
    for key, what in (("start_fingerprint", "start weights"), ("data_fingerprint", "data"), ("dtype", "dtype")):
        if where.before.meta.get(key) != meta[key]:
            raise RunError(f"run_dir={where.path}: the {what} changed since the run began; it cannot go on")
    scored_by = where.before.meta.get("reward_fingerprint")  # runs older than the key lack it
    if scored_by not in (None, meta["reward_fingerprint"]):
        raise RunError(f"run_dir={where.path}: the reward model was trained again since the run began, and came out "
                       "another; put back the first one, or name another run_dir")  # fmt: skip
    for found in snapshots(where.path / "checkpoints"):
        lost = _lost(where.path, found.run)
        if not lost:
            return found
        warnings.warn(f"checkpoint of step {found.step}: {lost}; the one before it is used", stacklevel=2)
    return None


def _lost(path: Path, position: Any) -> str:
    """Why a run cannot go on from where it stood at `position`; "": it can. What was written after it is cut anyway."""
    if not _is_position(position):
        return "it does not say where its run stood"
    if not covers(path, position):
        return f"{path} has lost rows since"
    try:
        read_lines(path / LINES[0], size=position["sizes"][LINES[0]])
    except RunError as damaged:
        return on_one_line(str(damaged))
    return ""


def _is_position(position: Any) -> bool:
    """Whether it is what `Run.position` gives: a checkpoint that somebody sent may hold anything."""
    if not isinstance(position, Mapping) or not position.keys() >= {"sizes", "counters", "seconds"}:
        return False
    sizes, counters, seconds = position["sizes"], position["counters"], position["seconds"]
    return isinstance(seconds, int | float) and all(
        isinstance(part, Mapping)
        and part.keys() == set(names)
        and all(type(n) is int and n >= 0 for n in part.values())
        for part, names in ((sizes, LINES), (counters, COUNTERS))
    )


def covers(path: Path, position: Mapping[str, Any]) -> bool:
    """Whether the files of a run directory reach as far as they did at `position`, with a line ending there."""
    return all(_line_ends(path / name, size) for name, size in position["sizes"].items())


def _line_ends(file: Path, size: int) -> bool:
    if not file.is_file() or file.stat().st_size < size:
        return False
    with file.open("rb") as handle:
        handle.seek(max(size - 1, 0))
        return size == 0 or handle.read(1) == b"\n"
