"""Whole experiments on the tiny model, in this process: a run takes about a second instead of eight of imports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from align import experiment
from align.models import Policy, load_policy
from align.runs import RunRecord, read
from tests.config.test_conf import composed

ROOT = Path(__file__).resolve().parents[2]
BY_COMMAND = pytest.mark.skipif("ALIGN_WHOLE" not in os.environ, reason="CI has no time for it; ALIGN_WHOLE=1")
EVEN = "tests.end_to_end.bandit:even"
# A random policy answers no sum, so its reward is its form: something that differs from completion to completion.
TINY = ("model=tiny", "data=arithmetic", f"reward.formula={EVEN}", "device=cpu", "dtype=float32", "probe.prompts=4",
        "probe.pairs=4", "sampling.max_new_tokens=8", "tracker=none")  # fmt: skip


def no_warmup(algo: str) -> tuple[str, ...]:
    """A warm-up longer than the run is refused; the baselines have no optimizer that could have one."""
    if algo in ("best_of_n", "temperature"):
        return (f"algo={algo}",)
    return (f"algo={algo}", "algo.optimizer.warmup_steps=0")


def execute(root: Path, *overrides: str, page: bool = False) -> Path:
    """Carry out the experiment of the overrides on top of TINY, under `root`; `page` writes its report (slow)."""
    settings = composed(*TINY, f"runs_root={root}", *overrides)
    if page:
        return experiment.execute(settings)
    with patch("align.experiment.report", lambda path: None):
        return experiment.execute(settings)


def run(root: Path, *overrides: str) -> RunRecord:
    return read(execute(root, *overrides), samples=True)


def run_and_keep(root: Path, *overrides: str) -> tuple[Path, Policy]:
    """The run directory and the policy in memory as the run left it."""
    kept: list[Policy] = []

    def keep(*args: Any) -> Policy:
        kept.append(load_policy(*args))
        return kept[-1]

    with patch("align.experiment.load_policy", keep):
        return execute(root, *overrides), kept[0]


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    """What a model thinks of the next token, for every token of the tiny vocabulary in one sequence. [L, V]"""
    model.eval()
    return model(input_ids=torch.arange(5, 261).unsqueeze(0)).logits[0].log_softmax(-1)


def adapter_moved(weights: Mapping[str, torch.Tensor]) -> bool:
    """LoRA's B is zero before the first update."""
    moved = [bool(value.any()) for name, value in weights.items() if "lora_B" in name]
    return bool(moved) and all(moved)
