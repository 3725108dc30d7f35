"""Inputs that show themselves as wrong when they are opened: refused with key and fix, and nothing is left behind."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from align.config import plain
from align.data import DataError
from align.embedded import ModelError
from align.refusals import ConfigError
from align.rows import RunError
from align.runs import Run, read
from tests.config.test_conf import composed
from tests.end_to_end.helpers import TINY, execute, no_warmup

BAD = "tests.end_to_end.bad_rewards"


def refusal(root: Path, kind: type[Exception], *overrides: str) -> str:
    """The message of an experiment that must be refused, with nothing written under `root`."""
    before = sorted(root.rglob("*"))
    with pytest.raises(kind) as refused:
        execute(root / "runs", "steps=1", *overrides)
    assert type(refused.value) is kind
    assert sorted(root.rglob("*")) == before
    return str(refused.value)


def fake_run(path: Path, *overrides: str, state: str = "finished") -> Path:
    """A run directory as far as its config goes; nothing was trained."""
    with Run.create(path, plain(composed(*TINY, *overrides)), {}) as run:
        pass
    run.status(state)
    return path


# --- models ---


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("{here}/nowhere", "no such folder"),
        ("./nowhere", "no such folder"),
        ("~/nowhere-{here.name}", "no such folder"),
        ("{here}/empty", "no config.json"),
        ("{here}/unknown", "cannot load it"),
        ("{here}/broken", "cannot load it"),
        ("{here}/nowhere.gguf", "no such file"),
        ("{here}/garbage.gguf", "cannot read this .gguf"),
        ("{here}/torn.gguf", "cannot read this .gguf"),
        ("a b//c", "hub id (owner/name)"),
        ("nobody/nothing-here", "did not give it"),
    ],
)
def test_a_model_that_is_not_there(tmp_path, monkeypatch, path, named):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # a hub that nobody answers for
    for folder in ("cache", "empty", "unknown", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "no-such-type"}')
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"')
    (tmp_path / "garbage.gguf").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    path = path.format(here=tmp_path)
    started = time.monotonic()
    message = refusal(tmp_path, ModelError, f"model.path='{path}'")
    assert time.monotonic() - started < 5
    assert f"model.path={Path(path).expanduser() if path.endswith('.gguf') else path}" in message
    assert named in message


def test_a_module_that_the_adapter_should_go_on(tmp_path):
    message = refusal(tmp_path, ModelError, "model.lora.targets=[q_proj,quux_proj]")
    assert "model.lora.targets" in message and "quux_proj" in message and "q_proj," not in message


def test_a_device_that_is_not_there(tmp_path):
    assert "device=xpu:7" in refusal(tmp_path, ModelError, "device=xpu:7")


# --- run directories ---


@pytest.mark.parametrize("runs", ["a file", "a folder with something in it", "below a file"])
def test_a_run_dir_that_cannot_be_used(tmp_path, runs):
    taken = tmp_path / "taken"
    if runs == "a folder with something in it":
        taken.mkdir()
        (taken / "thesis.tex").write_text("years of work")
    else:
        taken.write_text("years of work")
    path = taken / "run" if runs == "below a file" else taken
    message = refusal(tmp_path, RunError, f"run_dir={path}")
    assert f"run_dir={path}" in message
    assert ("cannot be written" if runs == "below a file" else "not empty") in message
    assert "years of work" in (taken / "thesis.tex" if taken.is_dir() else taken).read_text()


def test_a_runs_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(tmp_path, RunError, f"runs_root={tmp_path}/file")


# --- resume ---


def test_resume_in_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    for name in ("folder", "file"):
        message = refusal(tmp_path, RunError, f"run_dir={tmp_path}/{name}", "resume=true")
        assert f"run_dir={tmp_path}/{name} is not a run directory" in message


def test_resume_in_the_folder_of_another_config(tmp_path):
    run = fake_run(tmp_path / "run", "steps=1", "seed=4", state="running")
    message = refusal(tmp_path, RunError, f"run_dir={run}", "resume=true", "algo.kl.coef=0.5")
    assert f"run_dir={run} is another experiment" in message
    assert "seed (4 there, 0 here)" in message and "algo.kl.coef (0.04 there, 0.5 here)" in message


def test_a_folder_with_a_run_is_refused_with_the_way_to_go_on(tmp_path):
    run = fake_run(tmp_path / "run", "steps=1", state="running")
    message = refusal(tmp_path, RunError, f"run_dir={run}")
    assert f"run_dir={run} already exists" in message and "resume=true goes on with it" in message


@pytest.mark.parametrize(("key", "what"), [("start_fingerprint", "start weights"), ("data_fingerprint", "data")])
def test_resume_with_a_start_or_data_that_have_changed(tmp_path, key, what):
    run = execute(tmp_path, *no_warmup("sft"), "steps=1", f"run_dir={tmp_path}/run")
    meta = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps(meta | {key: "of other bytes"}))
    (run / "status.json").write_text('{"state": "running"}')
    message = refusal(tmp_path, RunError, *no_warmup("sft"), f"run_dir={run}", "resume=true")
    assert f"run_dir={run}: the {what} changed since the run began" in message


def test_a_damaged_row_in_a_run_to_go_on_with(tmp_path):
    """What follows the checkpoint is cut anyway, and without one it is all."""
    settings = (*no_warmup("sft"), "steps=1", f"run_dir={tmp_path}/run")
    run = fake_run(tmp_path / "run", *settings, state="running")
    meta = read(execute(tmp_path, *settings[:-1])).meta
    (run / "meta.json").write_text(json.dumps(dict(meta)))
    (run / "metrics.jsonl").write_text('{"phase": "tr\n{}\n')
    execute(tmp_path, *settings, "resume=true")
    assert [row["step"] for row in read(run).phase("train")] == [1] and read(run).state == "finished"


# --- model.start ---


def test_a_start_that_is_not_a_run(tmp_path):
    (tmp_path / "folder").mkdir()
    for start in ("nowhere", "folder"):
        message = refusal(tmp_path, ModelError, f"model.start={tmp_path}/{start}")
        assert "model.start" in message and f"{tmp_path}/{start} is not a run directory" in message


@pytest.mark.parametrize("config", ["{{{", "- a list", "a: mapping", "model: tiny\nalgo: sft"])
def test_a_start_whose_config_is_damaged(tmp_path, config):
    start = fake_run(tmp_path / "start")
    (start / "config.yaml").write_text(config)
    message = refusal(tmp_path, ModelError, f"model.start={start}")
    assert "model.start" in message and str(start) in message


def test_a_start_made_on_another_model(tmp_path):
    start = fake_run(tmp_path / "start", "model.path=embedded")
    message = refusal(tmp_path, ModelError, f"model.start={start}")
    assert f"model.start={start}" in message and "model.path=embedded" in message


def test_a_start_that_left_no_weights(tmp_path):
    start = fake_run(tmp_path / "start", state="failed")
    assert "no adapter/" in refusal(tmp_path, ModelError, f"model.start={start}")


def test_a_start_that_is_a_reward_model(tmp_path):
    """Its adapter would load onto a policy without a word, and without its head."""
    start = execute(tmp_path / "start", *no_warmup("reward"), "steps=1", "reward=none", "reward.formula=none")
    assert "it is a reward model" in refusal(tmp_path, ModelError, f"model.start={start}")


# --- reward.learned.run ---


LEARNED = ("reward=learned", "reward.formula=learned")


def test_a_reward_run_that_is_not_a_run(tmp_path):
    message = refusal(tmp_path, ModelError, *LEARNED, f"reward.learned.run={tmp_path}")
    assert f"reward.learned.run={tmp_path}" in message and "not a run directory" in message


def test_a_reward_run_of_another_algorithm(tmp_path):
    given = fake_run(tmp_path / "given", *no_warmup("dpo"))
    message = refusal(tmp_path, ModelError, *LEARNED, f"reward.learned.run={given}")
    assert f"reward.learned.run={given}" in message and "algo=dpo" in message


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_a_reward_run_that_did_not_finish(tmp_path, state):
    given = fake_run(tmp_path / "given", *no_warmup("reward"), state=state)
    message = refusal(tmp_path, ModelError, *LEARNED, f"reward.learned.run={given}")
    assert f"reward.learned.run={given}" in message and state in message


def test_a_reward_run_on_other_model_settings(tmp_path):
    given = fake_run(tmp_path / "given", *no_warmup("reward"), "model.lora.rank=3")
    message = refusal(tmp_path, ModelError, *LEARNED, f"reward.learned.run={given}")
    assert "other model settings" in message


def test_a_reward_run_that_lost_its_adapter(tmp_path):
    given = fake_run(tmp_path / "given", *no_warmup("reward"))
    assert "holds no adapter" in refusal(tmp_path, ModelError, *LEARNED, f"reward.learned.run={given}")


def test_a_reward_run_whose_config_is_damaged(tmp_path):
    given = fake_run(tmp_path / "given", *no_warmup("reward"))
    (given / "config.yaml").write_text("a: mapping")
    assert f"reward.learned.run={given}" in refusal(tmp_path, ModelError, *LEARNED, f"reward.learned.run={given}")


# --- data, rewards, trackers ---


def test_a_data_file_that_is_not_there(tmp_path):
    for name, named in (("nowhere.jsonl", "no such file"), ("", "is a folder")):
        path = tmp_path / name
        message = refusal(tmp_path, DataError, *no_warmup("dpo"), "data=jsonl", f"data.path={path}")
        assert f"data.path={path}" in message and named in message


def test_data_without_what_the_algorithm_needs(tmp_path):
    (tmp_path / "sft.jsonl").write_text(
        "".join(f'{{"prompt": "say {i}", "response": "number {i}"}}\n' for i in range(40))
    )
    message = refusal(tmp_path, DataError, *no_warmup("dpo"), "data=jsonl", f"data.path={tmp_path}/sft.jsonl")
    assert "algo=dpo needs preference pairs" in message


@pytest.mark.parametrize(
    ("formula", "named"),
    [
        ("nosuch.module:fn", "cannot import nosuch.module"),
        ("tests.end_to_end.nosuch:fn", "cannot import tests.end_to_end.nosuch"),
        (f"{BAD}:nosuch", "has no nosuch"),
        (f"{BAD}:NOT_CALLABLE", "it is int, not a function"),
        (f"{BAD}:takes_two", "one argument, the list of samples"),
        ("os:getcwd", "one argument, the list of samples"),
    ],
)
def test_a_reward_function_that_cannot_be_had(tmp_path, formula, named):
    message = refusal(tmp_path, ConfigError, f"reward.formula={formula}")
    assert f"reward.formula={formula}" in message and named in message


@pytest.mark.parametrize(("code", "named"), [("def reward(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")])
def test_a_reward_module_that_cannot_be_imported(tmp_path, monkeypatch, code, named):
    name = f"reward_with_a_{named.lower()}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    message = refusal(tmp_path, ConfigError, f"reward.formula={name}:reward")
    assert f"reward.formula={name}:reward" in message and named in message


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed(tmp_path, tracker):
    if find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed here")
    message = refusal(tmp_path, ConfigError, f"tracker={tracker}")
    assert f"tracker={tracker}" in message and "pip install" in message
