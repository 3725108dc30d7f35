"""Killed at a random instant and started again with resume=true, a run ends as if nothing had happened.

A checkpoint at every step, so that many kills land in the writing of one.
`ALIGN_WHOLE=1 ALIGN_KILLS=20 pytest tests/faults` is the whole of it; CI has time for one kill of most.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from align.runs import read, stable
from tests.end_to_end.helpers import BY_COMMAND
from tests.faults.child import ALGORITHMS, COMMON, start, whole

KILLS = int(os.environ.get("ALIGN_KILLS", "1"))
IN_CI = ("dpo", "grpo", "ppo learned")


@pytest.mark.parametrize("algo", [a if a in IN_CI else pytest.param(a, marks=BY_COMMAND) for a in ALGORITHMS])
def test_a_killed_run_ends_with_the_numbers_it_would_have_had(tmp_path, algo):
    settings = (*COMMON, *ALGORITHMS[algo])
    start(tmp_path / "whole", *settings).join()
    lasted = sum(json.loads(file.read_text())["seconds"] for file in (tmp_path / "whole").rglob("status.json"))
    run, weights = whole(tmp_path / "whole")
    assert run.state == "finished" and len(run.phase("train")) == 8 and weights
    moments = random.Random(f"{algo} {KILLS}")
    landed = {"before": 0, "training": 0, "writing a checkpoint": 0, "finished": 0}
    for number in range(KILLS):
        folder = tmp_path / f"killed-{number}"
        child = start(folder, *settings, "resume=true")
        early = moments.random() < 0.1
        while not early and child.is_alive() and not any(folder.rglob("meta.json")):
            time.sleep(0.005)  # until it is open; some are killed at some moment of their start
        time.sleep(moments.uniform(0, lasted))
        child.kill()
        child.join()
        landed[where(folder / "run")] += 1
        start(folder, *settings, "resume=true").join()
        again, same = whole(folder)
        assert [stable(row) for row in again.rows] == [stable(row) for row in run.rows], f"kill {number}"
        assert again.samples == run.samples
        assert same == weights
    print(f"\n{algo}: kills landed {landed}")


def where(run: Path) -> str:
    if not (run / "meta.json").is_file():
        return "before"
    if list((run / "checkpoints").glob(".*.tmp")):
        return "writing a checkpoint"
    return "finished" if read(run).state == "finished" else "training"
