"""A NaN in a weight, in logits or in a reward, at some moment: the run says so, and nothing that is kept has it.

`ALIGN_NAN=20 pytest tests/faults/test_nan.py` is the whole of it.
"""

from __future__ import annotations

import os
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from align.checkpoints import snapshots
from align.rows import read_lines
from align.runs import read, stable
from reward_models.base import RewardError
from tests.end_to_end.helpers import execute, no_warmup
from tests.faults import nan

MOMENTS = int(os.environ.get("ALIGN_NAN", "1"))
CI = [("sft", "stop"), ("grpo", "stop"), ("ppo", "skip")]
SETTINGS = {algo: no_warmup(algo) for algo in ("sft", "dpo")} | {algo: (f"algo={algo}",) for algo in ("grpo", "ppo")}
COMMON = ("steps=4", "probe.every=2", "checkpoint.every=1", "algo.optimizer.lr=0.01")


def carry_out(folder: Path, algo: str, rule: str, *more: str) -> str:
    """-> what the run died of, or nothing"""
    try:
        execute(folder, *SETTINGS[algo], *COMMON, f"guard.nonfinite={rule}", f"run_dir={folder}/run", *more)
    except (FloatingPointError, RewardError) as error:
        return str(error)
    return ""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [stable(row) for row in read(folder / "run").rows]


def kept(folder: Path) -> list[dict[str, Any]]:
    """Every set of weights that the run has written."""
    run = folder / "run"
    adapters = [load_file(file) for file in (run / "adapter").glob("*.safetensors")]
    return [*(dict(one.weights) for one in snapshots(run / "checkpoints")), *adapters]


@pytest.mark.parametrize(("algo", "rule"), CI if MOMENTS == 1 else list(product(SETTINGS, ("stop", "skip"))))
@pytest.mark.parametrize("where", ["weights", "logits", "rewards"])
def test_a_nan_is_said_and_never_kept(tmp_path, algo, where, rule):
    poison, ended = getattr(nan, f"in_{where}"), dict.fromkeys(("stopped", "left out", "met nothing"), 0)
    with poison(0) as calls:
        assert carry_out(tmp_path / "whole", algo, rule) == "" and calls
    expected, moments = rows(tmp_path / "whole"), random.Random(f"{algo} {where} {rule}")
    for number in range(MOMENTS):
        folder = tmp_path / str(number)
        with poison(moment := moments.randint(1, len(calls))):
            died = carry_out(folder, algo, rule)
        assert all(weights.isfinite().all() for one in kept(folder) for weights in one.values()), moment
        if died:
            assert "finite" in died or "nan" in died, died
            assert read(folder / "run").state == "failed"
            assert carry_out(folder, algo, rule, "resume=true") == ""
            assert rows(folder) == expected, f"{where} {moment}: {died}"
            ended["stopped"] += 1
        elif rows(folder) == expected:
            ended["met nothing"] += 1  # a position that nothing is asked of
        else:
            assert rule == "skip"
            events = [event["kind"] for event in read_lines(folder / "run" / "events.jsonl")]
            skipped = sum(row["guard/skipped_updates"] for row in read(folder / "run").phase("train"))
            missing = [key for row in rows(folder) for key, value in row.items() if value is None]
            assert "nonfinite" in events or skipped or missing, moment
            ended["left out"] += 1
    print(f"\n{algo} {where} {rule}: {ended}")
