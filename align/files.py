"""Files that are there whole or not at all, and that are the ones named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside it to write to, which takes its place: a reader sees the old content or the new, never half."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        _flush(aside)
        aside.replace(path)
    except OSError as error:
        error.add_note(f"in writing {path}")
        raise
    finally:
        aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """To the disk itself: after a power cut the name would stand there with nothing in it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def appending(path: Path) -> TextIO:
    """Open a file to write at its end. A link is not followed: in a folder that somebody sent it may lead anywhere."""
    return open(path, "a", encoding="utf-8", opener=_no_link)  # noqa: SIM115  the caller closes it


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
