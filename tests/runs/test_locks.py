"""One process at a time works in a run directory, and a killed one leaves nothing locked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from align.locks import held, lock, unlock, waiting
from align.rows import RunError
from align.runs import Run

HOLD = "import sys, time; from align.locks import lock; from pathlib import Path; handle = lock(Path(sys.argv[1])); print(handle, flush=True); time.sleep({})"  # noqa: E501


def holder(path, seconds: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(seconds), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip().isdigit()
    return process


def test_a_run_that_another_process_works_in_is_refused(tmp_path):
    with Run.create(tmp_path / "run", {}, {}), pytest.raises(RunError, match="another process is working in it"):
        Run.reopen(tmp_path / "run", None)
    Run.reopen(tmp_path / "run", None)


def test_a_killed_holder_holds_nothing(tmp_path):
    process = holder(tmp_path, 60)
    assert lock(tmp_path) is None
    process.kill()
    process.wait()
    assert lock(tmp_path) is not None


def test_who_waits_goes_on_when_the_other_is_done(tmp_path):
    file = tmp_path / "stage.lock"
    file.touch()
    process = holder(file, 1.0)
    said: list[float] = []
    with waiting(file, lambda: said.append(time.monotonic())):
        assert process.wait() == 0
    assert len(said) == 1


FORKS = """import multiprocessing, sys, time
from pathlib import Path
from align.locks import lock
handle = lock(Path(sys.argv[1]))
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
print(worker.pid, flush=True)
time.sleep(60)"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_what_a_killed_holder_had_forked_holds_nothing_either(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", FORKS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert lock(tmp_path) is None, "the worker's end of it must not let go of the run's"
    process.kill()
    process.wait()
    try:
        handle = lock(tmp_path)
        assert handle is not None
        unlock(handle)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_that_another_user_left_is_taken_where_both_may_write(tmp_path, monkeypatch):
    opened, file = os.open, tmp_path / "pool.lock"
    file.touch()

    def theirs(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", theirs)
    with waiting(file, lambda: pytest.fail("nobody has it")):
        assert lock(file) is None and held(file) is True
    assert held(file) is False
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(PermissionError):
        lock(file)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_no_error_for_who_looks(tmp_path, monkeypatch, number):
    folder = tmp_path / "run"

    def none_here(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("align.locks.fcntl.flock", none_here)
    with pytest.raises(RunError, match="no locks"):
        Run.create(folder, {}, {})
    assert held(folder) is False
