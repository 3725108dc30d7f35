"""SIGTERM, which a cluster sends some time before SIGKILL: the step is finished, a checkpoint written, the run ends.

A probe, which changes nothing that is trained, is broken off and measured when the run goes on. A second signal does
not wait for the step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """The run was told to end."""


class Stop:
    """Whether the run was told to end; while it is `listening`, the signal's handler."""

    def __init__(self) -> None:
        self.asked = False
        self._breakable = False

    def __call__(self, *_: Any) -> None:
        again, self.asked = self.asked, True
        if again or self._breakable:
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
