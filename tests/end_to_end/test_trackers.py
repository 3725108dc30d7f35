"""What a tracker is sent is what metrics.jsonl has: whole, cut off and gone on with, or when the tracker fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from align import trackers
from align.rows import read_lines
from align.runs import RunRecord, read, stable
from tests.end_to_end import bad_rewards
from tests.end_to_end.helpers import execute, no_warmup
from tests.end_to_end.helpers import run as finished_run

# Stopped in the probe at 2: the row of training step 2 is written, the newest checkpoint is that of step 1.
CUT_OFF = (*no_warmup("dpo"), "steps=3", "probe.every=1", "probe.greedy=false", "checkpoint.every=1",
           "reward.formula=tests.end_to_end.bad_rewards:interrupted_on_the_third_call")  # fmt: skip


@pytest.fixture(autouse=True)
def a_fresh_count():
    bad_rewards.CALLS.clear()


def cut_off_and_gone_on_with(root: Path, tracker: str) -> RunRecord:
    settings = (*CUT_OFF, f"tracker={tracker}", f"run_dir={root}/run")
    with pytest.raises(KeyboardInterrupt):
        execute(root, *settings)
    assert [(row["phase"], row["step"]) for row in read(root / "run").rows][-1] == ("train", 2)
    return finished_run(root, *settings, "resume=true")


def tensorboard_values(run: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value. A step that stands twice fails."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(dict(pairs)) == len(pairs) for pairs in found.values()), found
    return {tag: dict(pairs) for tag, pairs in found.items()}


def values_of(run: RunRecord, clean: Callable[[str], str] = str) -> dict[str, dict[int, float]]:
    expected: dict[str, dict[int, float]] = {}
    for row in run.rows:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                expected.setdefault(clean(f"{row['phase']}/{key}"), {})[row["step"]] = value
    return expected


def approximately(values: dict[str, dict[int, float]]) -> dict[str, Any]:
    """TensorBoard keeps float32."""
    return {tag: pytest.approx(steps, rel=1e-6) for tag, steps in values.items()}


def test_tensorboard_shows_what_the_metrics_say(tmp_path):
    run = finished_run(tmp_path, "algo=grpo", "steps=2", "tracker=tensorboard")
    assert tensorboard_values(run.path) == approximately(values_of(run))
    silent = finished_run(tmp_path, "algo=grpo", "steps=2", f"run_dir={tmp_path}/silent")
    assert [stable(row) for row in run.rows] == [stable(row) for row in silent.rows]
    assert not (silent.path / "tensorboard").exists()


def test_tensorboard_finds_each_run_by_its_directory_and_the_whole_config_in_it(tmp_path):
    run = finished_run(tmp_path, "algo=grpo", "steps=1", "tracker=tensorboard")
    folders = {file.parent for file in tmp_path.rglob("*tfevents*")}
    assert folders == {run.path / "tensorboard"}
    (text,) = EventAccumulator(str(run.path / "tensorboard")).Reload().Tensors("config/text_summary")
    assert "max_new_tokens: 8" in text.tensor_proto.string_val[0].decode()


def test_a_resumed_run_has_each_step_once_in_tensorboard(tmp_path):
    run = cut_off_and_gone_on_with(tmp_path, "tensorboard")
    assert len(list((run.path / "tensorboard").iterdir())) == 2  # both starts wrote
    assert tensorboard_values(run.path) == approximately(values_of(run))


def test_a_run_that_starts_over_leaves_nothing_of_the_first_start_in_tensorboard(tmp_path):
    run = cut_off_and_gone_on_with(tmp_path, "tensorboard")
    settings = (*CUT_OFF, "tracker=tensorboard", f"run_dir={run.path}", "resume=true")
    (run.path / "status.json").write_text('{"state": "running"}')
    for file in (run.path / "checkpoints").rglob("state.pt"):
        file.write_bytes(b"damaged")
    again = finished_run(tmp_path, *settings)
    assert len(list((run.path / "tensorboard").iterdir())) == 1
    assert tensorboard_values(run.path) == approximately(values_of(again))


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capfd, method):
    def refuses(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server\nis away")

    monkeypatch.setattr(TensorBoardTracker, method, refuses)
    run = finished_run(tmp_path, "algo=grpo", "steps=2", "tracker=tensorboard")
    assert run.state == "finished" and len(run.rows) == 4
    (event,) = (row for row in read_lines(run.path / "events.jsonl") if row["kind"] == "tracker")
    assert "tracker=tensorboard failed (ConnectionError: the server is away)" in event["what"]
    assert capfd.readouterr().err.count("is away") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("before", [0, 3], ids=["at once", "after three rows"])
def test_a_full_disk_in_tensorboards_own_thread_is_said_without_its_traceback(tmp_path, monkeypatch, before):
    """Its thread opens the file anew for each write and raises there what it raises at the next call too."""
    said: list[tuple[str, int, str]] = []
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", hook := printed.append)
    run = trackers.Tracked(tmp_path, "run", {}, 0)
    with trackers.Tracking("tensorboard", run, lambda *event: said.append(event)) as tracking:
        for step in range(before + 1):
            if step == before:
                (file,) = (tmp_path / "tensorboard").iterdir()
                file.unlink()
                file.symlink_to("/dev/full")
            tracking.log({"phase": "train", "step": step, "loss": 1.0})
    ((kind, step, sentence),) = said
    assert (kind, step) == ("tracker", before) and "OSError: [Errno 28] No space left on device" in sentence
    assert not printed and threading.excepthook is hook


def test_a_thread_that_is_not_tensorboards_fails_as_it_always_did(tmp_path, monkeypatch):
    said: list[tuple[str, int, str]] = []
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    run = trackers.Tracked(tmp_path, "run", {}, 0)
    with trackers.Tracking("tensorboard", run, lambda *event: said.append(event)):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [args.exc_type for args in printed] == [ZeroDivisionError] and not said


class Recorder:
    """Stands in for a tracker that cannot take back what it was sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.told: list[tuple[Any, ...]] = []
        monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["mlflow"])
        monkeypatch.setitem(trackers.START, "mlflow", self.start)
        monkeypatch.setitem(trackers.END, "mlflow", lambda _, state: self.told.append(("end", state)))

    def start(self, run: trackers.Tracked, known: str | None) -> tuple[Any, str]:
        self.told.append(("start", run.path.name, known))
        return SimpleNamespace(log=self.log), f"id of {run.path.name}"

    def log(self, values: dict[str, float], step: int) -> None:
        assert values.keys() and all(isinstance(value, int | float) for value in values.values())
        self.told.append((next(iter(values)).partition("/")[0], step))


def test_a_resumed_run_goes_on_in_the_same_tracker_run_and_sends_no_row_twice(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    cut_off_and_gone_on_with(tmp_path, "mlflow")
    assert recorder.told == [
        ("start", "run", None), ("probe", 0), ("train", 1), ("probe", 1), ("train", 2), ("end", "interrupted"),
        ("start", "run", "id of run"), ("probe", 2), ("train", 3), ("probe", 3), ("end", "finished"),
    ]  # fmt: skip


def test_a_tracker_hears_of_a_failure(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    with pytest.raises(ValueError, match="division by zero"):
        execute(tmp_path, "algo=grpo", "steps=1", "tracker=mlflow",
                "reward.formula=tests.end_to_end.bad_rewards:raises")  # fmt: skip
    assert recorder.told[-1] == ("end", "failed")


def test_a_reward_model_trained_first_is_a_tracker_run_of_its_own_and_over_before_the_next_begins(
    tmp_path, monkeypatch
):
    recorder = Recorder(monkeypatch)
    execute(tmp_path, *no_warmup("grpo"), "steps=1", "tracker=mlflow", f"run_dir={tmp_path}/policy", "reward=learned",
            "reward.formula=learned", "reward.learned.steps=1",
            "reward.learned.algo.optimizer.warmup_steps=0")  # fmt: skip
    (stage,) = (path.name for path in (tmp_path / "stages").iterdir() if path.is_dir())
    opened = [told for told in recorder.told if told[0] in ("start", "end")]
    assert opened == [("start", stage, None), ("end", "finished"), ("start", "policy", None), ("end", "finished")]


def test_wandb_goes_on_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = cut_off_and_gone_on_with(tmp_path, "wandb")
    own = json.loads((run.path / "tracker.json").read_text())["wandb"]
    assert len(list((run.path / "wandb").glob(f"offline-run-*-{own}/run-{own}.wandb"))) == 2
    assert not (run.path / "events.jsonl").read_text()


def test_mlflow_has_each_row_once_and_knows_how_the_run_ended(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = cut_off_and_gone_on_with(tmp_path, "mlflow")
    (kept,) = mlflow.search_runs(experiment_names=["align"], output_format="list")
    assert (kept.info.run_name, kept.info.status) == ("run", "FINISHED")
    assert kept.data.params["sampling.max_new_tokens"] == "8"
    for key, steps in values_of(run).items():
        if not key.endswith(("seconds", "memory/peak_gb")) and "/time/" not in key:  # of the first start, or the second
            got = mlflow.MlflowClient().get_metric_history(kept.info.run_id, key)
            assert sorted((metric.step, metric.value) for metric in got) == sorted(steps.items()), key


def test_trackio_has_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = cut_off_and_gone_on_with(tmp_path, "trackio")
    rows = [row for row in SQLiteStorage.get_logs("align", "run") if "train/loss" in row]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(r["step"], r["loss"]) for r in run.phase("train")]
