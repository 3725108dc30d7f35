"""Two processes never write one run directory, whoever comes first, and whatever the other has seen before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from align import locks
from align.config import plain
from align.places import place
from align.rows import RunError
from align.runs import Run, read
from tests.runs.fake_runs import config, write_run
from tests.runs.test_places import settings

RACE = """
import sys, time
from pathlib import Path
from align.rows import RunError
from align.runs import Run
run = Path(sys.argv[1])
print("up", flush=True)
sys.stdin.readline()
try:
    opened = Run.create(run, {}, {}) if sys.argv[2] == "create" else Run.reopen(run, None)
except RunError:
    print("refused", flush=True)
else:
    for step in range(200):
        opened.log("train", step, {"writer": float(sys.argv[3])})
    opened.__exit__(None, None, None)
    print("wrote", flush=True)
    sys.stdin.readline()  # not before the others have tried
"""


@pytest.mark.parametrize("way", ["create", "reopen"])
def test_of_processes_that_open_a_run_at_once_one_writes(tmp_path, way):
    path = tmp_path / "run"
    if way == "reopen":  # what was killed
        write_run(path, config(), state="running")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), way, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        for number in range(4)
    ]
    said = lambda process: process.stdout.readline().strip()  # noqa: E731
    assert {said(process) for process in processes} == {"up"}
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [said(process) for process in processes]
    for process in processes:
        process.communicate("\n")
    rows = read(path).rows
    assert {row["step"] for row in rows} == set(range(200)) and len(rows) == 200
    assert len({row["writer"] for row in rows}) == 1
    if way == "create":  # who comes when the first is done reopens what is finished: places.py does not come to that
        assert sorted(ends) == ["refused"] * 3 + ["wrote"]


def test_what_another_has_gone_on_with_since_it_was_read_is_left_alone(tmp_path):
    path = write_run(tmp_path / "run", config(), state="running")
    before = read(path)
    with Run.reopen(path, None, before) as run:
        run.log("probe", 0, {"kl/exact": 0.0})
    with pytest.raises(RunError, match="another process has gone on with it meanwhile"):
        Run.reopen(path, None, before)
    assert read(path).state == "finished" and len(read(path).rows) == 1 and not locks.held(path)


def test_a_run_that_another_made_between_the_look_and_the_lock_is_left_alone(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run", config())
    rows = read(path).rows
    monkeypatch.setattr("align.runs.is_empty", lambda folder: True)
    with pytest.raises(RunError, match="already exists"):
        Run.create(path, config(), {})
    assert read(path).rows == rows and not locks.held(path)


def test_a_run_that_another_process_is_just_opening_is_not_cleared_away(tmp_path):
    e = settings(tmp_path, f"run_dir={tmp_path}/run", "resume=true")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    handle = locks.lock(folder)
    with pytest.raises(RunError, match="another process is just opening it"):
        place(e)
    assert (folder / "metrics.jsonl").is_file()
    os.close(handle)
    assert place(e).path == folder and not (folder / "metrics.jsonl").exists()


def test_how_a_run_ended_is_written_before_its_lock_is_let_go(tmp_path, monkeypatch):
    seen = []
    whole = Run.status

    def status(run: Run, state: str, **details) -> None:
        seen.append((state, locks.held(run.path)))
        whole(run, state, **details)

    monkeypatch.setattr(Run, "status", status)
    with Run.create(tmp_path / "run", {}, {}):
        pass
    assert seen == [("running", True), ("finished", True)] and not locks.held(tmp_path / "run")


def test_looking_whether_a_folder_is_locked_writes_nothing_and_is_no_obstacle(tmp_path, monkeypatch):
    assert not locks.held(tmp_path) and list(tmp_path.iterdir()) == []
    assert not locks.held(tmp_path / "missing")
    os.close(locks.lock(tmp_path))
    glance = os.open(tmp_path / locks.FILE, os.O_RDONLY)
    locks.fcntl.flock(glance, locks.fcntl.LOCK_SH)
    monkeypatch.setattr("align.locks.time.sleep", lambda _: os.close(glance))  # `held` has let go by then
    handle = locks.lock(tmp_path)
    assert handle is not None and locks.held(tmp_path)
    os.close(handle)


def test_a_lock_is_one_that_holds_on_nfs_too(tmp_path, monkeypatch):
    """There a folder's own lock holds on one machine only, and an exclusive one wants a handle open for writing."""
    locked: list[Path] = []
    whole = locks.fcntl.flock

    def flock(handle: int, how: int) -> None:
        if how & locks.fcntl.LOCK_EX:
            os.write(handle, b"")  # EBADF for a handle that cannot write
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        assert path.is_file()
        locked.append(path)
        whole(handle, how)

    monkeypatch.setattr("align.locks.fcntl.flock", flock)
    with Run.create(tmp_path / "run", {}, {}), locks.waiting(tmp_path / "stage.lock", lambda: None):
        assert locks.held(tmp_path / "run")
    assert {path.name for path in locked} == {locks.FILE, "stage.lock"}


def test_a_folder_with_nothing_but_the_file_of_its_lock_is_empty(tmp_path):
    os.close(locks.lock(tmp_path))
    with Run.create(tmp_path, plain(settings(tmp_path)), {}) as run:
        assert read(run.path).state == "running"
