"""Files that are there whole or not at all, and that are the ones named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LINKS_OF_ITS_OWN = "wandb"  # a tracker's folder in a run directory; the run writes nothing there


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside it to write to, which takes its place: a reader sees the old content or the new, never half."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        aside.unlink(missing_ok=True)  # a link of that name would be written through
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


def not_own(folder: Path) -> Path | None:
    """An entry of a run directory, however deep, which is neither a file nor a folder: through a link one would write
    and remove elsewhere, on a pipe one would wait. None: there is none, or no such folder."""
    places = [folder]
    while places:
        place = places.pop(0)
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            if _odd(entry):
                return entry
            if entry.is_dir() and entry != folder / LINKS_OF_ITS_OWN:
                places.append(entry)
    return None


def _odd(path: Path) -> bool:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:  # another process has removed it meanwhile
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))
