"""Sweeps that share their runs, and one that is killed: every run is made once, by one process at a time."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from align.jobs import records
from align.locks import held
from align.runs import read
from tests.faults.child import _started
from tests.faults.swept import Kills, carry_out

NO_KILLS = Kills(0.0, 0.0, "")
SFT = ("algo=sft", "algo.optimizer.warmup_steps=0", "checkpoint.every=1", "probe.every=100")


def runs(folder: Path) -> list[Path]:
    return [path.parent for path in (folder / "runs").glob("*/meta.json")]


@pytest.mark.slow
def test_two_sweeps_started_at_once_make_every_run_once(tmp_path):
    settings = (*SFT, "steps=3", "seed=0,1")
    sweeps = [_started(carry_out, str(tmp_path), number, settings, NO_KILLS) for number in range(2)]
    for child in sweeps:
        child.join()
    assert [child.exitcode for child in sweeps] == [0, 0]
    ended = [Counter(job.state for job in records(tmp_path / f"sweep-{number}")) for number in range(2)]
    assert ended[0] + ended[1] == {"finished": 2, "skipped": 2}
    assert len(runs(tmp_path)) == 2
    for path in runs(tmp_path):
        run = read(path)
        assert run.state == "finished"
        assert [row["step"] for row in run.phase("train")] == [1, 2, 3]
        assert [row["step"] for row in run.phase("probe")] == [0, 3]


@pytest.mark.slow
def test_the_run_of_a_sweep_that_is_killed_keeps_its_step_and_ends(tmp_path):
    """SIGKILL cannot be passed on: the run is told by the system when its parent is gone (align/stopping.py)."""
    sweep = _started(carry_out, str(tmp_path), 0, (*SFT, "steps=5000"), NO_KILLS)
    until = time.monotonic() + 120
    while not (found := runs(tmp_path)) or not read(found[0]).phase("train"):
        assert time.monotonic() < until and sweep.is_alive()
        time.sleep(0.01)
    sweep.kill()
    sweep.join()
    while held(found[0]):
        assert time.monotonic() < until
        time.sleep(0.05)
    run = read(found[0])
    kept = sorted(path.name for path in (found[0] / "checkpoints").iterdir())
    assert run.state == "interrupted" and kept[-1] == f"step-{run.phase('train')[-1]['step']:06d}"
