"""Trackers: TensorBoard, W&B, MLflow or trackio show a run while it goes on, one tracker run for each run directory.

They get what metrics.jsonl gets, as PHASE/KEY, and the whole config. A tracker only shows: when one fails the run says
so, once, and goes on without it. What identifies the tracker's run is kept in RUN_DIR/tracker.json, so that
`resume=true` goes on with it:

    tensorboard   in RUN_DIR/tensorboard; what was written after the checkpoint is purged
    wandb         project align (WANDB_PROJECT), named as the run directory; files in RUN_DIR/wandb, also offline
    mlflow        experiment align (MLFLOW_EXPERIMENT_NAME), where MLFLOW_TRACKING_URI says
    trackio       project align, named as the run directory; it finds a run by its name, the latest one of it

The last three cannot take back what they were sent. A row that they have had is not sent again: on a CPU it is the same
row, elsewhere they keep the first one. Rows of a time when the tracker had failed are not sent later.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from align.files import write_text
from align.private import scrubbed
from align.refusals import ConfigError
from align.report.arms import flatten

PROJECT = "align"
# The tracker's word for how a run ended; 255 is what W&B itself gives for Ctrl-C.
WANDB_CODES = {"finished": 0, "failed": 1, "interrupted": 255}
MLFLOW_STATES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a run when it opens it."""

    path: Path
    title: str
    config: Mapping[str, Any]
    start: int  # the step that the run goes on from; 0: it begins
    before: Sequence[Mapping[str, Any]] = ()  # rows of an earlier start, those after the checkpoint included


def require_installed(name: str) -> None:
    """Raises ConfigError for a tracker that is not installed."""
    if name != "none" and name not in map(str, get_available_trackers()):
        raise ConfigError(f"tracker={name}: it is not installed; pip install {name}, or tracker=none")


def _tensorboard(run: Tracked, known: str | None) -> tuple[GeneralTracker, str]:
    if run.start == 0:  # nothing is gone on with
        shutil.rmtree(run.path / "tensorboard", ignore_errors=True)
    tracker = TensorBoardTracker("tensorboard", run.path, purge_step=run.start + 1 if run.start else None)
    tracker.start()
    if run.start == 0:  # not as hparams: Accelerate's would be a second run beside this one
        text = yaml.safe_dump(dict(run.config), sort_keys=False)
        tracker.tracker.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))
    return tracker, "tensorboard"


def _wandb(run: Tracked, known: str | None) -> tuple[GeneralTracker, str]:
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT), name=run.path.name, group=run.title, dir=str(run.path), id=known,
        config=None if known else dict(run.config), resume="allow" if known else None,
    )  # fmt: skip
    tracker.start()
    # W&B's own step must grow with every call; a probe and a training row have the same one
    tracker.tracker.define_metric("*", step_metric="step")
    return tracker, tracker.tracker.id


def _mlflow(run: Tracked, known: str | None) -> tuple[GeneralTracker, str]:
    # MLflow's own 7 attempts held a run up for 4 minutes when its server was away
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    tracker = MLflowTracker(PROJECT, run_id=known, run_name=run.path.name, description=f"{run.title}, {run.path}")
    tracker.start()
    if known is None:  # a parameter is written once
        tracker.store_init_configuration(flatten(run.config))
    return tracker, tracker.tracker.info.run_id


def _trackio(run: Tracked, known: str | None) -> tuple[GeneralTracker, str]:
    tracker = TrackioTracker(
        PROJECT, name=known or run.path.name, group=run.title, config=None if known else dict(run.config),
        resume="allow" if known else "never",
    )  # fmt: skip
    tracker.start()
    return tracker, known or run.path.name  # a run directory may have been renamed since


def _end_wandb(tracker: GeneralTracker, state: str) -> None:
    tracker.tracker.finish(exit_code=WANDB_CODES[state])


def _end_mlflow(_: GeneralTracker, state: str) -> None:
    import mlflow

    mlflow.end_run(MLFLOW_STATES[state])


def _end_trackio(_: GeneralTracker, state: str) -> None:
    import trackio

    trackio.finish()  # Accelerate ends the run but leaves it the current one, and trackio would end it again at exit


START: dict[str, Callable[[Tracked, str | None], tuple[GeneralTracker, str]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
END: dict[str, Callable[[GeneralTracker, str], None]] = {
    "tensorboard": lambda tracker, _: tracker.finish(),
    "wandb": _end_wandb,
    "mlflow": _end_mlflow,
    "trackio": _end_trackio,
}


class Tracking:
    """One run's tracker, open. Use as a context manager: leaving it tells the tracker how the run ended.

    `event(kind, step, sentence)` is where a failure of the tracker is said.
    """

    def __init__(self, name: str, run: Tracked, event: Callable[[str, int, str], None]):
        self.name, self.run, self.event = name, run, event
        self.step = run.start
        self.sent: set[tuple[str, int]] = set()
        self.tracker: GeneralTracker | None = None
        self.others = threading.excepthook
        self.thread: BaseException | None = None  # what ended a thread of the tracker's own

    def __enter__(self) -> Self:
        self.others, threading.excepthook = threading.excepthook, self._thread_ended
        self._try(self._start)
        return self

    def _start(self) -> None:
        file = self.run.path / "tracker.json"
        ids = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        known = ids.get(self.name)
        if known is not None and self.name != "tensorboard":
            self.sent = {(row["phase"], row["step"]) for row in self.run.before}
        self.tracker, ids[self.name] = START[self.name](self.run, known)
        write_text(file, json.dumps(ids))

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl. What is not finite is null there and left out here."""
        phase, self.step = row["phase"], row["step"]
        if self.tracker is None or (phase, self.step) in self.sent:
            return
        values = {f"{phase}/{key}": value for key, value in row.items() if isinstance(value, int | float)}
        del values[f"{phase}/step"]
        tracker, own = self.tracker, self.name == "wandb"
        self._try(lambda: tracker.log(values | ({"step": self.step} if own else {}), None if own else self.step))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tracker is not None:
            self._try(lambda: self._end(kind))
        threading.excepthook = self.others

    def _end(self, kind: type[BaseException] | None) -> None:
        state = "finished" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        assert self.tracker is not None
        END[self.name](self.tracker, state)
        if self.thread is not None:  # the last rows did not get through, and nothing else says so
            raise self.thread

    def _thread_ended(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread: on a full disk its traceback stood before the run's own word for it."""
        if self.name == "tensorboard" and type(args.thread).__module__.startswith("tensorboard."):
            self.thread = args.exc_value
        else:
            self.others(args)

    def _try(self, act: Callable[[], None]) -> None:
        """Whatever a tracker, its server or the network does: hours of training must not end for it."""
        try:
            act()
        except Exception as error:
            self.tracker = None
            why = " ".join(scrubbed(str(error)).split())[:300]
            self.event("tracker", self.step, f"tracker={self.name} failed ({type(error).__name__}: {why}); the run "
                       "goes on without it, metrics.jsonl has every row")  # fmt: skip
