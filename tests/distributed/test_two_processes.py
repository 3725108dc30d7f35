"""One process with a batch of 8, two with 4, and eight accumulated forwards of 1 are the same training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from align.runs import read
from tests.distributed.worker import ALGORITHMS, STEPS, carry_out
from tests.end_to_end.helpers import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All runs: on one process first, which records the rollouts, then on two at once."""
    place = tmp_path_factory.mktemp("cuts")
    for name in ALGORITHMS:
        carry_out(place, name, 8, "whole")
        carry_out(place, name, 1, "accumulated")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "conf/accelerate/ddp.yaml", "-m"]
    done = subprocess.run([*launch, "tests.distributed.worker", str(place)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.parametrize("label", ["accumulated", "two"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradient_norms_and_weights_do_not_depend_on_how_the_batch_is_cut(folder, name, label):
    one, other = read(folder / f"{name}-whole"), read(folder / f"{name}-{label}")
    assert len(one.phase("train")) == len(other.phase("train")) == STEPS
    for key in ("optim/grad_norm", "optim/critic_grad_norm"):
        norms = [[row[key] for row in run.phase("train") if key in row] for run in (one, other)]
        assert_close(norms[1], norms[0], rtol=1e-4, atol=1e-6)
    if name in ("sft", "dpo"):
        losses = [[row["loss"] for row in run.phase("train")] for run in (one, other)]
        assert_close(losses[1], losses[0], rtol=0, atol=1e-5)
    weights = [load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)


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
