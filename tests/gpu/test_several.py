"""Two accelerators: DDP trains what one trains, and what is cut up is obtained as asked, then refused (docs/scale.md).

Skipped with fewer than two; those of DeepSpeed without it. Not run yet: the machines that tests ran on had one.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from align.runs import read
from tests.end_to_end.helpers import EVEN, ROOT, no_warmup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]
DEVICE = "cuda"
SETTINGS = ("model=tiny", "data=arithmetic", f"reward.formula={EVEN}", "dtype=float32", "probe.prompts=4",
            "probe.pairs=4", "sampling.max_new_tokens=8", "tracker=none", "steps=3", "probe.every=3",
            "algo.optimizer.eps=1e-5", "algo.micro_batch=4")  # fmt: skip
PER_STEP = {"sft": "algo.examples_per_step=8", "dpo": "algo.pairs_per_step=8", "reward": "algo.pairs_per_step=8",
            "grpo": "algo.prompts_per_step=4"}  # fmt: skip


def launched(name: str, run: Path, algo: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"conf/accelerate/{name}.yaml",
               "-m", "align.run", *SETTINGS, f"device={DEVICE}", *no_warmup(algo), PER_STEP[algo],
               f"run_dir={run}"]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("algo", PER_STEP)
def test_two_accelerators_train_what_one_trains(tmp_path, algo):
    for name in ("gpu", "ddp"):
        done = launched(name, tmp_path / name, algo)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = read(tmp_path / "gpu"), read(tmp_path / "ddp")
    assert (one.meta["processes"], two.meta["processes"]) == (1, 2)
    norms = [[row["optim/grad_norm"] for row in run.phase("train")] for run in (one, two)]
    assert_close(norms[1], norms[0], rtol=1e-3, atol=1e-6)
    weights = [load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (one, two)]
    for key, value in weights[0].items():
        assert_close(weights[1][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["fsdp2", "zero1", "zero2", "zero3"])
def test_what_is_cut_up_is_obtained_as_asked_and_refused_for_what_it_cannot_do(tmp_path, name):
    if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    done = launched(name, tmp_path / name, "grpo")
    assert done.returncode == 1 and not (tmp_path / name).exists()
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"={name}: " in said and "Accelerate would train with" not in said, said
    assert "ddp.yaml" in said
