"""Told to end (SIGTERM), a run finishes its step, writes a checkpoint and ends; resume=true goes on from there.

No checkpoint is due in these runs: the one that is found is that of the signal.
`ALIGN_WHOLE=1 ALIGN_KILLS=20 pytest tests/faults` is the whole of it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from types import SimpleNamespace

import pytest

from align.checkpoints import snapshots
from align.probe import Probe
from align.rows import read_lines
from align.runs import read, stable
from align.stopping import Stop, Terminated
from tests.end_to_end.helpers import BY_COMMAND, execute
from tests.faults.child import ALGORITHMS, COMMON, start, whole

KILLS = int(os.environ.get("ALIGN_KILLS", "1"))
NEVER = "checkpoint.every=1000"


def rows(folder) -> list[tuple[str, int]]:
    return [(row["phase"], row["step"]) for row in read_lines(folder / "run" / "metrics.jsonl")]


@pytest.mark.parametrize("algo", [pytest.param("sft", marks=BY_COMMAND), "dpo", "grpo", "ppo learned"])
def test_told_to_end_a_run_keeps_the_step_it_is_in(tmp_path, algo):
    settings = (*COMMON, *ALGORITHMS[algo], NEVER)
    start(tmp_path / "whole", *settings).join()
    run, weights = whole(tmp_path / "whole")
    for number in range(KILLS):
        moment = random.Random(f"{algo} {number}").choice(rows(tmp_path / "whole")[:-1])
        folder = tmp_path / f"told-{number}"
        child = start(folder, *settings, "resume=true")
        while child.is_alive() and moment not in rows(folder):
            time.sleep(0.002)
        child.terminate()
        child.join()
        done = [step for phase, step in rows(folder) if phase == "train"]
        kept = [snapshot.step for snapshot in snapshots(folder / "run" / "checkpoints")]
        assert read(folder / "run").state == "interrupted"
        assert kept == done[-1:], "nothing that was trained is lost"
        start(folder, *settings, "resume=true").join()
        again, same = whole(folder)
        assert [stable(row) for row in again.rows] == [stable(row) for row in run.rows], f"{moment}"
        assert (again.samples, same) == (run.samples, weights)


@pytest.mark.parametrize("algo", ["sft", "dpo", "grpo"])
def test_told_to_end_in_its_last_probe_and_again_a_run_is_not_finished_without_it(tmp_path, monkeypatch, algo):
    settings = (*ALGORITHMS[algo], "steps=2", "probe.every=2", f"run_dir={tmp_path}/run", "resume=true")
    measure = Probe.measure

    def told(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return measure(self, step)

    monkeypatch.setattr(Probe, "measure", told)
    for _ in range(2):
        with pytest.raises(Terminated):
            execute(tmp_path, *settings)
        assert read(tmp_path / "run").state == "interrupted"
    monkeypatch.undo()
    execute(tmp_path, *settings)
    assert rows(tmp_path)[-1] == ("probe", 2) and read(tmp_path / "run").state == "finished"


def test_what_can_be_given_up_is_given_up_at_once_and_a_second_signal_does_not_wait(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("align.stopping.time", SimpleNamespace(monotonic=lambda: clock[0]))
    stop = Stop()
    stop()
    clock[0] += 4
    stop()  # the same one, heard of the launcher too
    clock[0] += 2
    with pytest.raises(Terminated):
        stop()
    with pytest.raises(Terminated), stop.breakable():
        pytest.fail("it is not begun")
    other = Stop()
    with pytest.raises(Terminated), other.breakable():
        other()
    other = Stop()
    other.obey()
    other()
    with pytest.raises(Terminated):
        other.obey()
