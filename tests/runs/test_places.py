"""Where a run goes: a folder of its own, or with resume=true that of the run of its config that was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.checkpoints import write
from align.config import plain
from align.describe import elsewhere
from align.locks import is_empty, unlock
from align.places import Place, newest, place
from align.rows import RunError
from align.runs import Run
from tests.config.test_conf import composed
from tests.runs.test_checkpoints import damage, snapshot

META = {"start_fingerprint": "a", "data_fingerprint": "b", "reward_fingerprint": "c", "dtype": "float32"}


def settings(tmp_path: Path, *overrides: str) -> Any:
    return composed("model=tiny", "data=arithmetic", f"runs_root={tmp_path}/runs", *overrides)


def cut_off(where: Place, experiment: Any, state: str = "running", rows: int = 2) -> Path:
    """A run directory with a checkpoint after each of its rows."""
    run = Run.create(where.path, plain(experiment), META)
    for step in range(1, rows + 1):
        run.log("train", step, {"loss": 1.0})
        write(where.path / "checkpoints", snapshot(step, run.position()))
    run.status(state)
    unlock(run._lock)  # as the system does for a killed process
    return where.path


def test_without_resume_every_run_has_a_folder_of_its_own(tmp_path):
    e = settings(tmp_path)
    first = cut_off(place(e), e)
    assert place(e) == Place(first.with_name(f"{first.name}-2"))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_resume_goes_on_with_the_last_run_of_its_config(tmp_path, number):
    e, resumed = settings(tmp_path), settings(tmp_path, "resume=true", "checkpoint.every=3")
    assert place(resumed).before is None
    last = [cut_off(place(e), e) for _ in range(number)][-1]
    found = place(resumed)
    assert (found.path, found.finished) == (last, False) and found.before is not None
    assert place(settings(tmp_path, "resume=true", "seed=1")).before is None


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted", "running"])
def test_only_a_finished_run_is_finished(tmp_path, state):
    e = settings(tmp_path, "resume=true")
    cut_off(place(e), e, state)
    assert place(e).finished is (state == "finished")


def test_the_newest_checkpoint_that_the_files_cover_is_gone_on_from(tmp_path):
    e = settings(tmp_path, "resume=true")
    path = cut_off(place(e), e, rows=3)
    assert newest(place(e), META).step == 3
    rows = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(rows[:-1])
    with pytest.warns(UserWarning, match="checkpoint of step 3: .* has lost rows since"):
        assert newest(place(e), META).step == 2
    damage(path / "checkpoints" / "step-000002" / "state.pt")
    with pytest.warns(UserWarning, match="step-000002 is damaged"):
        assert newest(place(e), META).step == 1
    (path / "metrics.jsonl").write_text("")  # nothing covers it
    with pytest.warns(UserWarning):
        assert newest(place(e), META) is None


@pytest.mark.parametrize(
    ("key", "what"), [("start_fingerprint", "start weights"), ("data_fingerprint", "data"), ("dtype", "dtype")]
)
def test_a_run_whose_start_or_data_have_changed_cannot_go_on(tmp_path, key, what):
    e = settings(tmp_path, "resume=true")
    cut_off(place(e), e)
    with pytest.raises(RunError, match=f"the {what} changed"):
        newest(place(e), META | {key: "other"})


def test_a_run_cannot_go_on_with_another_reward_model(tmp_path):
    e = settings(tmp_path, "resume=true")
    cut_off(place(e), e)
    for other in ("other", None):
        with pytest.raises(RunError, match="the reward model was trained again"):
            newest(place(e), META | {"reward_fingerprint": other})


def test_a_run_older_than_the_reward_models_fingerprint_goes_on(tmp_path):
    e = settings(tmp_path, "resume=true")
    path = cut_off(place(e), e)
    (path / "meta.json").write_text(json.dumps({k: v for k, v in META.items() if not k.startswith("reward")}))
    assert newest(place(e), META).step == 2


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"threads": 2, "versions": {"torch": "2.13.0", "trl": "1.8"}}, ""),
        ({"threads": 8, "versions": {"torch": "2.13.0"}}, "threads 2 (began with 8)"),
        ({"threads": 2, "versions": {"torch": "2.12.0"}}, "torch 2.13.0 (began with 2.12.0)"),
        ({"threads": 4, "versions": {"torch": "2.12.0"}}, "threads 2 (began with 4), torch 2.13.0 (began with 2.12.0)"),
        ({"threads": 2}, ""),  # what was not written down cannot be said to differ
        ({"versions": "2.12.0"}, ""),
        ({}, ""),
    ],
)
def test_other_software_or_another_machine_is_said(before, said):
    found = elsewhere(before, {"threads": 2, "versions": {"torch": "2.13.0", "trl": "1.8"}, "name": "grpo"})
    assert found == (f"goes on with {said}: numbers may round differently from here" if said else "")


def test_a_setting_that_is_infinite_is_read_back(tmp_path):
    overrides = ("data=annotator", "data.labels.sharpness=inf", "resume=true")
    e = settings(tmp_path, *overrides)
    cut_off(place(e), e)
    before = place(e).before
    assert before is not None and before.config["data"]["labels"]["sharpness"] == float("inf")


def test_a_new_run_goes_on_from_nothing(tmp_path):
    assert newest(Place(tmp_path), {}) is None


# --- folders that are not that run ---


def test_another_experiment_is_refused_and_every_difference_named(tmp_path):
    e = settings(tmp_path, f"run_dir={tmp_path}/run")
    cut_off(place(e), e)
    there = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    other = settings(tmp_path, f"run_dir={tmp_path}/run", "resume=true", "seed=3", "model.lora.rank=2", "tracker=wandb")
    with pytest.raises(RunError, match="another experiment") as refusal:
        place(other)
    rank = there["model"]["lora"]["rank"]
    for difference in ("seed (0 there, 3 here)", f"model.lora.rank ({rank} there, 2 here)"):
        assert difference in str(refusal.value)
    assert "tracker" not in str(refusal.value) and "resume" not in str(refusal.value)
    del there["guard"]["log_ratio"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(there))
    with pytest.raises(RunError, match=r"guard.log_ratio \(unset there, 5.0 here\)"):
        place(settings(tmp_path, f"run_dir={tmp_path}/run", "resume=true"))


@pytest.mark.parametrize("left", [[], ["config.yaml"], ["config.yaml.7.tmp"], ["config.yaml", "meta.json.7.tmp"]])
def test_a_start_that_was_stopped_before_it_was_open_is_started_anew(tmp_path, left):
    e = settings(tmp_path, f"run_dir={tmp_path}/run", "resume=true")
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text(yaml.safe_dump(plain(e)))
    assert place(e) == Place(tmp_path / "run")
    assert is_empty(tmp_path / "run")


FOREIGN = {"thesis.tex": "years of work", "config.yaml": "theme: dark", "notes.tmp": "", "config.yaml.tmp": ""}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path, name):
    e = settings(tmp_path, f"run_dir={tmp_path}/run", "resume=true")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "meta.json.7.tmp").write_text("")
    (tmp_path / "run" / name).write_text(FOREIGN[name])
    with pytest.raises(RunError, match=f"run_dir={tmp_path}/run is not a run directory"):
        place(e)
    assert (tmp_path / "run" / name).read_text() == FOREIGN[name]
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_a_run_of_the_same_name_prefix_is_not_mistaken_for_an_earlier_one(tmp_path):
    e = settings(tmp_path)
    first = cut_off(place(e), e)
    first.with_name(f"{first.name}-old").mkdir()
    assert place(settings(tmp_path, "resume=true")).path == first
