"""SIGTERM, which a cluster sends some time before SIGKILL: the step is finished, a checkpoint written, the run ends.

A probe, which changes nothing that is trained, is broken off and measured when the run goes on; so is a rollout that
servers sample (align/vllm_served.py), which they may never end. A second signal does
not wait for the step, unless it is the first one heard twice: a cluster tells every process of a job, and a launcher
tells its workers what it was told.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def end_with(parent: int) -> None:
    """On Linux: SIGTERM when the process that started this one is gone, however it went, or is gone already.

    submitit's SIGUSR2, which Slurm sends to every process of a job, is the parent's to hear: it tells this one.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, see prctl(2)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


SAME = 5.0  # seconds in which a signal is the one before, heard again


class Terminated(KeyboardInterrupt):
    """The run was told to end."""


class Stop:
    """Whether the run was told to end; while it is `listening`, the signal's handler."""

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0  # when it was heard
        self._breakable = False

    def __call__(self, *_: Any) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._first = True, now
        if self._breakable or now - self._first > SAME:
            raise Terminated

    def obey(self) -> None:
        """Raises Terminated if the run was told to end."""
        if self.asked:
            raise Terminated

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """What is done inside is given up at once."""
        self.obey()
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM is heard, unless whoever started this process ignores it or hears it himself."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTERM, self)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
