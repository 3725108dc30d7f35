"""A sweep whose jobs are forked from a process that has imported everything, some of them to be killed.

What a job does is `align.run.main()` with the command line that the sweep gives it. Spared are imports and the drawing
of each run's page, which are most of what a run of the tiny model takes; the comparison at the sweep's end is whole.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.end_to_end.helpers import TINY


@dataclass(frozen=True)
class Kills:
    """SIGKILL for a share of the job processes, each at some moment of its first `seconds`."""

    share: float
    seconds: float
    seed: str


class Forked:
    """The face of subprocess.Popen that align/jobs.py looks at."""

    def __init__(self, pid: int, killer: int | None):
        self.pid, self.returncode, self._killer = pid, 0, killer

    def wait(self) -> int:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if self._killer is not None:
            os.kill(self._killer, signal.SIGKILL)  # not waited for yet: its number is still its own
            os.waitpid(self._killer, 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forking(kills: Kills):
    moments = random.Random(kills.seed)

    def start_child(arguments: Sequence[str], words: Path, log: Path | None) -> Forked:
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _job(parent, arguments, words)
        killed, moment = moments.random() < kills.share, moments.uniform(0, kills.seconds)
        return Forked(pid, _killer(pid, moment) if killed else None)

    return start_child


def _killer(victim: int, seconds: float) -> int:
    handle = os.pidfd_open(victim)  # of this process, whoever has its number later
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os._exit(0)
    os.close(handle)
    return pid


def _job(parent: int, arguments: Sequence[str], words: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra

    from align import experiment, run, sweep
    from align.jobs import LAST_WORDS, PARENT

    code = 2
    try:
        os.setpgid(0, 0)
        for name in (signal.SIGTERM, signal.SIGHUP):  # the sweep's own: a new process has none
            signal.signal(name, signal.SIG_DFL)
        os.environ |= {LAST_WORDS: str(words.absolute()), PARENT: str(parent)}
        sys.argv = ["align.run", *arguments[3:]]
        GlobalHydra.instance().clear()
        sweep.FOLDERS.clear()
        experiment.report = lambda path: (path / "report.html").write_text("drawn by others")
        run.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def carry_out(folder: str, number: int, overrides: tuple[str, ...], kills: Kills) -> None:
    """`python -m align.run -m ...`: runs in folder/runs, the sweep's records in folder/sweep-NUMBER."""
    import torch

    from align import jobs, run

    torch.set_num_threads(1)
    handle = os.open(f"{folder}/sweep-{number}.log", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    jobs.start_child = forking(kills)  # type: ignore[assignment]
    own = (f"runs_root={folder}/runs", f"hydra.sweep.dir={folder}/sweep-{number}")
    sys.argv = ["align.run", "-m", *TINY, *own, *overrides]
    run.main()
