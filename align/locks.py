"""One process at a time in a folder: a lock that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there nothing is locked
    fcntl = None  # type: ignore[assignment]


# The lock of a folder is that of a file in it, open for writing: on NFS a lock of the folder itself would hold on one
# machine only (its folders have no flock of their own), and an exclusive lock needs a handle that can write (flock(2)).
FILE = ".lock"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # in a folder that somebody sent it may lead anywhere; not on Windows
_held = set[int]()  # handles of locks
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre mounted without `flock`, say
# Nothing there that `lock` could have made: no file, a link, a socket, no such folder
NO_LOCK_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO)
GLANCE = 0.2  # seconds that a lock is tried for: whoever looks whether it is held (`held`) has it for a moment


def lock(path: Path) -> int | None:
    """Lock a folder or file for as long as the returned handle is open; None when another process holds it."""
    handle = _open(_file(path))
    _held.add(handle)
    if fcntl is None:
        return handle
    until = time.monotonic() + GLANCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                unlock(handle)
                return None
            time.sleep(GLANCE / 10)
        except OSError as error:
            unlock(handle)
            if error.errno in NO_LOCKS:
                raise OSError(error.errno, "its file system has no locks (flock); mount it with them, or name a folder "
                              "on another") from error  # fmt: skip
            raise
        else:
            return handle


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except PermissionError:
        if not os.access(file.parent, os.W_OK):
            raise
        return os.open(file, os.O_RDONLY | NO_LINK)  # left by another user of a folder that both may write


def unlock(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _let_go() -> None:
    """In a process that was forked, a reward's worker for one: it would hold the lock after the run was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder but the file of its lock, which stays: another process may have it open."""
    return all(file.name == FILE for file in folder.iterdir())


@contextmanager
def waiting(path: Path, say: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file, made if missing; `say` is called when another process has to be waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = lock(path)
    if handle is None:
        say()
        handle = _open(path)
        _held.add(handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        unlock(handle)


def held(path: Path) -> bool | None:
    """Whether a process has the lock now; True on a system where nothing is locked, as one cannot know.

    None where it cannot be looked at, being another user's: one cannot know either, but who waited for it would do so
    for ever, and cannot work there anyway. Writes nothing: a folder never locked, or not there, is not held.
    """
    if fcntl is None:
        return True
    try:
        handle = os.open(_file(path), os.O_RDONLY | os.O_NONBLOCK | NO_LINK)  # a pipe is not waited for
    except OSError as error:
        return False if error.errno in NO_LOCK_FILE else None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return False if error.errno in NO_LOCKS else None  # where nothing can be locked no run is
    finally:
        os.close(handle)
    return False
