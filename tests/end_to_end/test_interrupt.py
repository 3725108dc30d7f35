"""Runs that end early: the user stops them, a reward misbehaves, a number is not finite. And the exit codes."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from align import compare
from align import run as entry
from align.rows import RunError
from align.runs import RunRecord, read, stable
from tests.end_to_end import bad_rewards
from tests.end_to_end.helpers import TINY, adapter_moved, execute, no_warmup

BAD = "tests.end_to_end.bad_rewards"
INTERRUPTING = (f"reward.formula={BAD}:interrupted_on_the_third_call", "probe.every=1", "steps=5",
                "probe.greedy=false", "algo.optimizer.lr=0.01")  # fmt: skip

# grpo asks for rewards in the probe at 0, in step 1 and in the probe at 1; dpo in the probes only.
DONE = {
    "grpo": [("probe", 0), ("train", 1)],
    "dpo": [("probe", 0), ("train", 1), ("probe", 1), ("train", 2)],
}


@pytest.fixture(autouse=True)
def a_fresh_count():
    bad_rewards.CALLS.clear()


@pytest.fixture
def shell(monkeypatch, tmp_path, capfd):
    """`python -m align.run ...` without a new process: overrides -> exit code, stderr, its run folder."""

    def call(*overrides: str) -> tuple[int, str, RunRecord]:
        monkeypatch.setattr(sys, "argv", ["align.run", *TINY, f"run_dir={tmp_path}/run", *overrides])
        monkeypatch.setattr("align.experiment.report", lambda path: None)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        code = 0
        try:
            entry.main()
        except SystemExit as end:
            code = end.code
        return code, capfd.readouterr().err, read(tmp_path / "run")

    return call


@pytest.mark.parametrize("algo", ["grpo", "dpo"])
def test_an_interrupted_run_keeps_what_it_has_learned(shell, algo, tmp_path):
    code, message, run = shell(*no_warmup(algo), *INTERRUPTING)
    assert code == 130
    assert message.endswith(f"{run.path}\n") and "Traceback" not in message
    assert message.count("\ninterrupted\n") == 1 and message.count("resume=true") == 1
    assert run.state == "interrupted"
    assert [(row["phase"], row["step"]) for row in run.rows] == DONE[algo]
    assert adapter_moved(load_file(run.path / "adapter" / "adapter_model.safetensors"))
    assert not (run.path / "error.log").exists()
    assert compare.main([str(run.path), f"out={tmp_path}/out"]) == 0
    assert "interrupted" in (tmp_path / "out" / "index.html").read_text()


STOPPED = {  # algo, the call it is interrupted in -> rows that stay, the step it goes on from
    ("grpo", "third"): 0,  # in the probe at 1, before the checkpoint of step 1: it starts over
    ("grpo", "sixth"): 2,  # in the third rollout
    ("ppo", "sixth"): 2,
    ("dpo", "third"): 1,  # in the probe at 2
    ("sft", "sixth"): 4,
}


@pytest.mark.parametrize(("algo", "call"), STOPPED)
def test_an_interrupted_run_goes_on_and_ends_with_the_numbers_it_would_have_had(shell, algo, call, tmp_path):
    settings = (*no_warmup(algo), *INTERRUPTING, f"reward.formula={BAD}:interrupted_on_the_{call}_call",
                "checkpoint.every=1")  # fmt: skip
    assert shell(*settings)[0] == 130
    code, message, run = shell(*settings, "resume=true")
    assert code == 0
    assert f"goes on from step {STOPPED[algo, call]}" in message
    whole = read(execute(tmp_path / "whole", *settings))  # the reward has had its call
    assert [stable(row) for row in run.rows] == [stable(row) for row in whole.rows] and len(run.rows) == 11
    assert weights(run) == weights(whole)


def weights(run: RunRecord) -> bytes:
    return (run.path / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_finished_run_is_not_touched_by_resume(shell):
    settings = (*no_warmup("grpo"), "steps=1")
    code, _, run = shell(*settings, "resume=true")
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    assert code == 0 and run.state == "finished"
    code, _, again = shell(*settings, "resume=true", "checkpoint.every=3")
    assert code == 0
    assert again == run
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*")} == before


@pytest.mark.parametrize("lost", ["a row", "every row", "samples.jsonl"])
def test_files_shorter_than_a_checkpoint_says_send_a_run_further_back(shell, lost, tmp_path):
    settings = (*no_warmup("grpo"), *INTERRUPTING, f"reward.formula={BAD}:interrupted_on_the_sixth_call",
                "checkpoint.every=1")  # fmt: skip
    _, _, run = shell(*settings)
    rows = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(row)["phase"] for row in rows] == ["probe", "train", "probe", "train", "probe"]
    if lost == "samples.jsonl":
        (run.path / lost).unlink()
    else:
        (run.path / "metrics.jsonl").write_text("".join(rows[:-1] if lost == "a row" else []))
    _, message, run = shell(*settings, "resume=true")
    assert "checkpoint of step 2" in message and "has lost rows since" in message
    assert f"goes on from step {1 if lost == 'a row' else 0}" in message
    whole = read(execute(tmp_path / "whole", *settings))
    assert [stable(row) for row in run.rows] == [stable(row) for row in whole.rows] and len(run.rows) == 11


def test_ctrl_c_is_what_interrupts(shell, monkeypatch):
    """A real SIGINT, sent while a step is being computed."""
    from align.trainers import learner

    scored = learner.policy_loss

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return scored(*args)

    monkeypatch.setattr(learner, "policy_loss", interrupted)
    code, _, run = shell("algo=grpo", "steps=2")
    assert (code, run.state) == (130, "interrupted")
    assert (run.path / "adapter" / "adapter_config.json").is_file()


def test_a_reward_model_interrupted_on_the_way_is_trained_anew(tmp_path, monkeypatch):
    from align.trainers import trl_runs

    learned = (*no_warmup("grpo"), "steps=1", "reward=learned", "reward.formula=learned", "reward.learned.steps=2",
               "reward.learned.algo.optimizer.warmup_steps=0")  # fmt: skip
    with monkeypatch.context() as during:
        during.setattr(trl_runs, "reward_metrics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path, *learned)
    (stage,) = (path for path in (tmp_path / "stages").iterdir() if path.is_dir())
    assert read(stage).state == "interrupted"
    assert read(execute(tmp_path, *learned)).state == "finished"
    assert read(stage).state == "finished"


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("function", "named"),
    [
        ("raises", ["ZeroDivisionError", "division by zero", "prompt:", "What is", "completion:"]),
        ("nan", ["nan", "not finite", "prompt:", "What is", "completion:"]),
        ("infinite", ["-inf", "not finite", "prompt:", "What is", "completion:"]),
        ("none_for_each", ["None", "not a number", "prompt:", "What is", "completion:"]),
        ("words", ["'good'", "not a number", "prompt:", "What is", "completion:"]),
        ("digits", ["'5'", "not a number", "prompt:", "What is", "completion:"]),
        ("nothing", ["None", "expected 4 floats"]),
        ("one_number", ["1.0", "expected 4 floats"]),
        ("generator", ["expected 4 floats"]),
        ("one_too_few", ["3 values for 4 completions"]),
        ("never_returns", ["within 0.2 s for 4 completions (reward_seconds)"]),
        ("hears_nothing", ["within 0.2 s for 4 completions (reward_seconds)"]),
        ("backtracks", ["within 0.2 s for 4 completions (reward_seconds)"]),
    ],
)
def test_a_reward_that_misbehaves_is_the_user_s_to_repair(shell, function, named):
    code, message, run = shell("algo=grpo", "steps=2", f"reward.formula={BAD}:{function}", "reward_seconds=0.2")
    assert code == 1
    assert "Traceback" not in message
    for words in [f"reward '{BAD}:{function}'", *named]:
        assert words in message
    assert run.state == "failed"
    assert f"{BAD}:{function}" in (run.path / "error.log").read_text()
    assert not (run.path / "adapter").exists()


def test_a_loss_that_is_not_finite_fails_the_run_before_it_reaches_the_weights(shell, monkeypatch):
    from align.trainers import learner

    scored = learner.policy_loss

    def not_finite(*args):
        loss, stats, log_ratios = scored(*args)
        return loss * torch.tensor(float("nan")), stats | {"loss": torch.tensor(float("nan"))}, log_ratios

    monkeypatch.setattr(learner, "policy_loss", not_finite)
    failed(*shell("algo=grpo", "steps=2"), "step 1: loss is nan")


def test_so_does_one_in_a_trainer_of_trl_s(shell, monkeypatch):
    from align.trainers import trl_losses

    monkeypatch.setitem(trl_losses.OWN_LOSSES, "simpo", lambda pairs, algo: pairs.chosen * float("inf"))
    failed(*shell(*no_warmup("simpo"), "steps=2"), "step 1: the loss is")


def failed(code: int, message: str, run: RunRecord, words: str) -> None:
    assert code == 2
    assert "FloatingPointError" in message and words in message
    assert str(run.path / "error.log") in message
    assert run.state == "failed"
    log = (run.path / "error.log").read_text()
    assert "Traceback" in log and words in log
    assert [(row["phase"], row["step"]) for row in run.rows] == [("probe", 0)]
    assert not (run.path / "adapter").exists()


def test_a_failure_before_there_is_a_run_directory_shows_its_traceback(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(sys, "argv", ["align.run", *TINY, f"run_dir={tmp_path}/run"])
    monkeypatch.setattr("align.experiment.load_data", lambda *_: 1 / 0)
    with pytest.raises(SystemExit) as end:
        entry.main()
    message = capfd.readouterr().err
    assert end.value.code == 2
    assert "Traceback" in message and "ZeroDivisionError" in message and "error.log" not in message
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_between_two_micro_batches_does_not_stop_the_next_from_learning(tmp_path, monkeypatch):
    """Accelerate keeps one state for the process: switched off when gradients are only accumulated."""
    from align.trainers import trl_losses

    with monkeypatch.context() as during:
        during.setattr(trl_losses.Dpo, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path, *no_warmup("dpo"), "steps=2", "algo.micro_batch=2")
    run = read(execute(tmp_path, "algo=grpo", "steps=2", "algo.optimizer.lr=0.01"))
    first, last = (row["kl/exact"] for row in run.phase("probe"))
    assert first == 0 and last > 0


def test_processes_that_find_different_checkpoints_do_not_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("align.experiment.gather_object", lambda own: [*own, 20])
    with pytest.raises(RunError, match=r"not every process finds the same checkpoint \(steps \[None, 20\]\)"):
        execute(tmp_path, *no_warmup("sft"), "steps=1")
    assert not list(tmp_path.glob("*/meta.json"))
