"""A sweep of which jobs are killed at random instants, started again until it is complete, is the sweep without kills.

`ALIGN_SWEEP_RUNS=200 pytest -s tests/faults/test_sweep_kills.py` is the whole of it, 10 % of every start's jobs killed.
`ALIGN_SWEEP_RUNS=6` takes a minute: it kills more of them, and only once.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest

from align.jobs import records
from align.runs import read, stable
from tests.faults.child import _started
from tests.faults.swept import Kills, carry_out

RUNS = int(os.environ.get("ALIGN_SWEEP_RUNS", "6"))
MANY = RUNS >= 50
ALGOS = "sft,dpo,grpo,rloo" if MANY else "sft,grpo"
SETTINGS = (f"algo={ALGOS}", f"seed=range({RUNS // len(ALGOS.split(','))})", "steps=3", "checkpoint.every=1",
            "probe.every=2", "algo.optimizer.warmup_steps=0", "algo.optimizer.lr=0.01")  # fmt: skip
NO_KILLS = Kills(0.0, 0.0, "")


def sweep(folder: Path, number: int, kills: Kills) -> int | None:
    child = _started(carry_out, str(folder), number, SETTINGS, kills)
    child.join()
    return child.exitcode


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def left(folder: Path) -> dict[str, object]:
    """What each run of a sweep left, but for times."""
    runs = [read(path.parent, samples=True) for path in (folder / "runs").glob("*/meta.json")]
    return {run.path.name: ([stable(row) for row in run.rows], run.samples, run.state) for run in runs}


@pytest.mark.skipif("ALIGN_SWEEP_RUNS" not in os.environ, reason="CI has no time for it; ALIGN_SWEEP_RUNS=6")
@pytest.mark.slow
def test_a_sweep_with_killed_jobs_started_again_is_the_sweep_without_kills(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    began = time.monotonic()
    assert sweep(whole, 0, NO_KILLS) == 0
    jobs = records(whole / "sweep-0")
    lasted = sum(job.seconds for job in jobs) / len(jobs)
    assert len(jobs) == RUNS == len(left(whole))
    took, codes, landed = time.monotonic() - began, list[int | None](), 0
    while codes[-1:] != [0]:
        share = 0.1 if MANY else 0.5 * (not codes)
        codes.append(sweep(killed, len(codes), Kills(share, lasted, f"kills {len(codes)}")))
        landed += sum(job.exit_code == 137 for job in records(killed / f"sweep-{len(codes) - 1}"))
        assert len(codes) < 12, codes
    print(f"\n{RUNS} runs of {lasted:.1f} s: {took:.0f} s without kills; with {landed} kills {len(codes)} starts, exit "
          f"codes {codes}, {time.monotonic() - began - took:.0f} s")  # fmt: skip
    assert landed > 0 and codes[0] == 2
    assert left(killed) == left(whole)
    assert summary(killed / f"sweep-{len(codes) - 1}") == summary(whole / "sweep-0")
