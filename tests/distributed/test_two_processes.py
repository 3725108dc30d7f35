"""One process with a batch of 8, two with 4, and eight accumulated forwards of 1 are the same training; so is
one run that was begun by two processes and ended by one, or the other way round."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from align.rows import read_lines
from align.runs import RunRecord, read, stable
from tests.distributed.launched import environment
from tests.distributed.worker import ALGORITHMS, FURTHER, RECUT, STEPS, STOP, UNTRAINED, carry_out, stopped
from tests.end_to_end.helpers import ROOT

SHARDED = ("fsdp2", "zero2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All runs: on one process first, which records the rollouts, then on two at once."""
    place = tmp_path_factory.mktemp("cuts")
    for name in ALGORITHMS:
        carry_out(place, name, 8, "whole")
        carry_out(place, name, 1, "accumulated")
    for name in FURTHER:  # of orpo's loss the micro-batch is a part (docs/algorithms.md)
        carry_out(place, name, 4 if name == "orpo" else 8, "whole")
    for name in RECUT:
        stopped(place, name, 4, "one then two")
    asked = {name: environment(name) for name in SHARDED}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "conf/accelerate/ddp.yaml", "-m"]
    command = [*launch, "tests.distributed.worker", str(place), json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in RECUT:
        carry_out(place, name, 4, "two then one", "resume=true")
    return place


def same_training(one: RunRecord, other: RunRecord) -> None:
    assert [row["step"] for row in one.phase("train")] == [row["step"] for row in other.phase("train")]
    for key in ("optim/grad_norm", "optim/critic_grad_norm"):
        norms = [[row[key] for row in run.phase("train") if key in row] for run in (one, other)]
        assert_close(norms[1], norms[0], rtol=1e-4, atol=1e-6)
    weights = [load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("label", ["accumulated", "two"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradient_norms_and_weights_do_not_depend_on_how_the_batch_is_cut(folder, name, label):
    one, other = read(folder / f"{name}-whole"), read(folder / f"{name}-{label}")
    assert len(one.phase("train")) == STEPS
    same_training(one, other)
    if name in ("sft", "dpo"):
        losses = [[row["loss"] for row in run.phase("train")] for run in (one, other)]
        assert_close(losses[1], losses[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_processes_hold_the_same_gradient_of_every_tensor(folder, name):
    here, there = (torch.load(folder / f"{name}-two.gradients.{rank}") for rank in (0, 1))
    whole = torch.load(folder / f"{name}-whole.gradients.0")
    assert torch.equal(here, there) and here.abs().sum() > 0
    assert_close(here, whole, rtol=1e-3, atol=1e-6)


def test_two_processes_write_one_run_with_each_row_once(folder):
    for name in ALGORITHMS:
        rows = read(folder / f"{name}-two").rows
        places = [(row["phase"], row["step"]) for row in rows]
        assert len(set(places)) == len(places) == STEPS + 2


@pytest.mark.parametrize("name", [name for name in FURTHER if name not in UNTRAINED])
def test_two_processes_do_what_one_does_for_every_other_algorithm(folder, name):
    one, two = read(folder / f"{name}-whole"), read(folder / f"{name}-two")
    assert len(one.phase("train")) == STEPS
    same_training(one, two)
    here, there = (torch.load(folder / f"{name}-two.gradients.{rank}") for rank in (0, 1))
    assert torch.equal(here, there) and here.abs().sum() > 0


@pytest.mark.parametrize("name", UNTRAINED)
def test_two_processes_measure_a_baseline_once(folder, name):
    one, two = read(folder / f"{name}-whole"), read(folder / f"{name}-two")
    assert [stable(row) for row in two.rows] == [stable(row) for row in one.rows] and one.rows


@pytest.mark.parametrize("label", ["two then one", "one then two"])
@pytest.mark.parametrize("name", RECUT)
def test_a_run_goes_on_with_another_number_of_processes(folder, name, label):
    whole, recut = read(folder / f"{name}-whole"), read(folder / f"{name}-{label}")
    same_training(whole, recut)
    assert [(row["phase"], row["step"]) for row in recut.rows] == [(row["phase"], row["step"]) for row in whole.rows]
    assert [row["gen_tokens"] for row in recut.rows] == [row["gen_tokens"] for row in whole.rows]
    (event,) = [row for row in read_lines(recut.path / "events.jsonl") if row["kind"] == "processes"]
    before, now = (2, 1) if label == "two then one" else (1, 2)
    assert event["step"] == STOP and event["what"].startswith(f"{before} processes were stopped and {now} go on")


@pytest.mark.parametrize("name", SHARDED)
def test_on_a_cpu_a_run_says_that_accelerate_would_not_shard_it(folder, name):
    for rank in (0, 1):
        message = json.loads((folder / f"refused.{rank}").read_text())[name]
        if name == "fsdp2" or importlib.util.find_spec("deepspeed"):
            assert f"={name}: Accelerate would train with ddp on this cpu" in message
        else:
            assert "pip install deepspeed" in message
    assert not (folder / "refused").exists()
