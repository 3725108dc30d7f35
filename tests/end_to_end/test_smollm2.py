"""The embedded model through the command a user types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from align.runs import read

COMMAND = ("algo=grpo", "data=arithmetic", "steps=2", "probe.prompts=4", "probe.pairs=4", "sampling.max_new_tokens=16",
           "algo.prompts_per_step=2", "algo.group_size=4")  # fmt: skip


@pytest.mark.slow
def test_two_steps_of_grpo_on_the_embedded_model(tmp_path):
    command = [sys.executable, "-m", "align.run", f"runs_root={tmp_path}/runs", *COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = read(Path(done.stdout.splitlines()[-1]), samples=True)
    assert run.path.parent == tmp_path / "runs"
    assert run.state == "finished"
    assert run.meta["name"] == "grpo smollm2-135m arithmetic"
    first, last = run.phase("probe")
    assert [first["kl/k1"], first["kl/k3"], first["kl/exact"]] == [0, 0, 0]
    assert [row["step"] for row in run.phase("train")] == [1, 2]
    assert any(sample["finished"] for sample in run.samples)  # it has learned to end its answers
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    assert (run.path / "report.html").is_file()
