"""The clock of the day is set by hours, to and fro, while a run is trained, cut off and gone on with."""

from __future__ import annotations

import itertools
import os
import time

from align.runs import Run, read, stable
from align.watched import SILENCE, Watched
from tests.end_to_end.helpers import execute, no_warmup
from tests.runs.fake_runs import config, write_run

HOURS = 3600.0


def test_a_clock_that_jumps_by_hours_changes_no_run_and_no_duration(tmp_path, monkeypatch):
    settings = (
        *no_warmup("sft"),
        "steps=4",
        "checkpoint.every=2",
        "probe.every=2",
        "tracker=tensorboard",
        "resume=true",
    )
    whole = read(execute(tmp_path / "whole", *settings))
    now, jumps = time.time, itertools.cycle([0.0, 5 * HOURS, -5 * HOURS])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    path = execute(tmp_path / "jumped", *settings)
    run = read(path)
    (path / "status.json").write_text('{"state": "running"}')  # as if killed before it said so: goes on from step 2
    again = read(execute(tmp_path / "jumped", *settings))
    for found in (run, again):
        assert found.state == "finished"
        assert [stable(row) for row in found.rows] == [stable(row) for row in whole.rows]
        seconds = [row["seconds"] for row in found.rows]
        assert seconds == sorted(seconds)
        durations = [value for row in found.rows for key, value in row.items() if key.startswith("time/")]
        assert durations and all(0 <= value < HOURS for value in (*seconds, *durations))


def test_a_dead_run_is_seen_to_be_dead_when_the_clock_was_set_back_since(tmp_path):
    path = write_run(tmp_path / "run", config(), state="running")
    for file in path.iterdir():
        os.utime(file, times=(time.time() + 3 * HOURS,) * 2)
    watched = Watched(path)
    watched.poll()
    assert watched.state == "stopped"


def test_a_clock_set_while_it_is_watched_does_not_make_a_run_old_or_young(tmp_path, monkeypatch):
    with Run.create(tmp_path / "run", config(), {}) as run:
        watched = Watched(run.path)
        watched.poll()
        now = time.time
        for hours in (3, -3):
            monkeypatch.setattr(time, "time", lambda hours=hours: now() + hours * HOURS)
            assert 0 <= watched.age < SILENCE * 10
