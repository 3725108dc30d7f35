"""guard.nonfinite on every path: stop the run with its step, or leave the update out and count it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from align.runs import read
from tests.end_to_end.helpers import execute, no_warmup

SETTINGS = {algo: no_warmup(algo) for algo in ("sft", "reward", "dpo", "kto", "orpo")} | {
    algo: (f"algo={algo}",) for algo in ("grpo", "ppo")
}


def poisoned(monkeypatch: Any, at: int) -> list[int]:
    """The gradient norm of one optimizer step is NaN, as when one of its gradients is."""
    calls: list[int] = []
    clip = torch.nn.utils.clip_grad_norm_

    def clipped(parameters, *args, **kwargs):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == at:
            next(p for p in parameters if p.grad is not None).grad.fill_(math.nan)
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    return calls


@pytest.mark.parametrize("algo", SETTINGS)
def test_skip_leaves_out_one_update_and_counts_it(tmp_path, monkeypatch, algo):
    calls = poisoned(monkeypatch, at=2)
    run = read(execute(tmp_path, *SETTINGS[algo], "steps=3", "probe.every=3", "guard.nonfinite=skip"))
    assert len(calls) >= 3
    skipped = [row["guard/skipped_updates"] for row in run.phase("train")]
    assert sum(skipped) == 1
    last = run.phase("probe")[-1]
    assert all(value is not None for value in last.values())


@pytest.mark.parametrize("algo", SETTINGS)
def test_stop_ends_the_run_and_says_where(tmp_path, monkeypatch, algo):
    poisoned(monkeypatch, at=1)
    with pytest.raises(FloatingPointError, match="step 1: .*nan"):
        execute(tmp_path, *SETTINGS[algo], "steps=3", f"run_dir={tmp_path}/run")
    assert read(tmp_path / "run").state == "failed"
