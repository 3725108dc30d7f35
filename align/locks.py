"""One process at a time in a folder: a lock that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there nothing is locked
    fcntl = None  # type: ignore[assignment]


def lock(path: Path) -> int | None:
    """Lock a folder or file for as long as the returned handle is open; None when another process holds it."""
    handle = os.open(path, os.O_RDONLY)
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextmanager
def waiting(path: Path, say: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file, made if missing; `say` is called when another process has to be waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    handle = lock(path)
    if handle is None:
        say()
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def held(path: Path) -> bool:
    """Whether a process has the lock now; True on a system where nothing is locked, as one cannot know."""
    handle = lock(path)
    if handle is not None:
        os.close(handle)
    return handle is None or fcntl is None
