"""Checkpoints: what a run needs to go on as if it had never been stopped.

    checkpoints/step-000020/
        weights.safetensors   everything that training changes
        state.pt              optimizer, schedule, random streams, controllers, positions (tensors and plain values)
        manifest.json         SHA-256 of the two files above

A checkpoint is written beside, flushed to disk and renamed, so it is whole or not there. One that was damaged later
does not match its manifest, and the one before it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.rows import RunError
from align.schema import Checkpoint
from align.stopping import Stop, Terminated

FILES = ("weights.safetensors", "state.pt")
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
          pickle.UnpicklingError, SafetensorError)  # fmt: skip
# Another look may find it whole: a network file system that stalls, too many open files, no right to read
UNREADABLE = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
)


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint in memory."""

    step: int
    weights: Mapping[str, Tensor]
    state: Mapping[str, Any]  # of the trainer
    run: Mapping[str, Any]  # of the run directory: counters, seconds, sizes of its files
    probe: Mapping[str, Any]
    rng: list[Mapping[str, Any]]  # of each process
    probed: bool = True  # whether the probe of this step, if it was due, had been done


@dataclass
class Keeper:
    """Saves when a checkpoint is due, and holds the one that this run goes on from."""

    folder: Path
    cfg: Checkpoint
    steps: int
    accelerator: Accelerator
    run_state: Callable[[], Mapping[str, Any]]
    start: Snapshot | None = None
    probe_state: Callable[[], Mapping[str, Any]] = field(default=dict)
    stop: Stop = field(default_factory=Stop)
    probed: bool = True

    def save(self, step: int, model: nn.Module, state: Callable[[], Mapping[str, Any]]) -> None:
        """Every checkpoint.every steps, but not where the run starts, goes on or ends; and where it is told to end,
        by raising Terminated on every process."""
        begun, told = self.start.step if self.start else 0, self._told_to_end()
        if begun < step and (told or (step % self.cfg.every == 0 and step < self.steps)):
            self._write(step, model, state)
        if told:
            raise Terminated

    def _told_to_end(self) -> bool:
        """Whether any process was: they end at the same step."""
        asked = torch.tensor(int(self.stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum")) if self.accelerator.num_processes > 1 else self.stop.asked

    def _write(self, step: int, model: nn.Module, state: Callable[[], Mapping[str, Any]]) -> None:
        need_finite(model)
        streams = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            parts = trainable(model), state(), self.run_state(), self.probe_state()
            write(self.folder, Snapshot(step, *parts, streams, self.probed))
            prune(self.folder, self.cfg.keep, step)
        self.accelerator.wait_for_everyone()

    def restore_rng(self) -> None:
        """The random streams of this process; of processes that were not there the first ones' again, as all have one
        stream where a run starts."""
        if self.start is not None:
            restore_rng(self.start.rng[self.accelerator.process_index % len(self.start.rng)])

    @property
    def recut(self) -> str:
        """What to say when other than as many processes go on as were stopped."""
        now = self.accelerator.num_processes
        if self.start is None or len(self.start.rng) == now:
            return ""
        return (
            f"{len(self.start.rng)} processes were stopped and {now} go on: sums round differently from here, and "
            "what draws from a process's own random stream (dropout, a reward of yours) draws other numbers"
        )


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def need_finite(model: nn.Module) -> None:
    """Before weights are kept: a run that went on from others could never be mended. Raises FloatingPointError."""
    broken = [name for name, weights in trainable(model).items() if not weights.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"{len(broken)} trained tensors are not finite, {broken[0]} first; they are not kept. "
            "Go on from the last checkpoint with a lower algo.optimizer.lr"
        )


@torch.no_grad()
def load_trainable(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = trainable(model)
    assert own.keys() == weights.keys(), own.keys() ^ weights.keys()
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write aside, flush, rename. What an earlier process left half-written is removed. -> the checkpoint's folder"""
    target = folder / _name(snapshot.step)
    aside = folder / f".{target.name}.tmp"
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left)
    aside.mkdir(parents=True)
    save_file({name: value.contiguous().cpu() for name, value in snapshot.weights.items()}, aside / FILES[0])
    rest = {
        "step": snapshot.step,
        "state": snapshot.state,
        "run": snapshot.run,
        "probe": snapshot.probe,
        "rng": snapshot.rng,
        "probed": snapshot.probed,
    }
    _save(rest, aside / FILES[1])
    sums = {name: _flushed_sha256(aside / name) for name in FILES}
    (aside / "manifest.json").write_text(json.dumps(sums))
    _flushed_sha256(aside / "manifest.json")
    _flush_folder(aside)
    if target.exists():  # a damaged one that was skipped
        shutil.rmtree(target)
    aside.rename(target)
    _flush_folder(folder)
    return target


def _save(values: Any, path: Path) -> None:
    """torch.save, whose own error on a full disk says "unexpected pos"."""
    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def prune(folder: Path, keep: int, step: int) -> None:
    """Remove all but the newest up to `step`: what claims to be later was damaged, or the run has gone back before it.

    The manifest goes first: half a checkpoint must not look like one.
    """
    found = _newest_first(folder)
    kept = [path for path in found if _order(path) <= _order(folder / _name(step))][:keep]
    for old in found:
        if old not in kept:
            if not (old / "manifest.json").is_dir():  # damage may be anything
                (old / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(old)


def snapshots(folder: Path) -> Iterator[Snapshot]:
    """Whole checkpoints, the newest first. Warns of each that is damaged. Raises RunError for one that cannot be read:
    another look may find it whole, and a run that went on without it would remove it."""
    for path in _newest_first(folder):
        try:
            yield _read(path)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno in UNREADABLE:
                raise RunError(f"checkpoint {path} cannot be read ({error.strerror or error}); nothing was changed. "
                               "Try again when it can be") from None  # fmt: skip
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            warnings.warn(f"checkpoint {path} is damaged ({reason}); the one before it is used", stacklevel=2)


def _read(path: Path) -> Snapshot:
    manifest = json.loads((path / "manifest.json").read_text())
    for name in FILES:
        if _sha256(path / name) != manifest[name]:
            raise ValueError(f"{name} does not match its checksum")
    rest = torch.load(path / FILES[1], map_location="cpu", weights_only=True)
    if path.name != _name(rest["step"]):
        raise ValueError("it is not of the step that its name says")
    parts = (rest[name] for name in ("state", "run", "probe", "rng"))
    return Snapshot(rest["step"], load_file(path / FILES[0]), *parts, rest.get("probed", True))  # older ones had none


def rng_state() -> dict[str, Any]:
    """Every global random stream of this process, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.tensor(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # there may be fewer by now


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _order(path: Path) -> tuple[int, str]:
    return len(path.name), path.name  # seven digits come after six


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), key=_order, reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flushed_sha256(path: Path) -> str:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return _sha256(path)


def _flush_folder(path: Path) -> None:
    """The rename itself, where the system can flush a folder."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def kept_rng() -> Iterator[None]:
    """Whatever is drawn inside, the random streams outside go on as if nothing had been."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)
