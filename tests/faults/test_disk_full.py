"""On a disk that is full at some moment a run ends with a plain word; with room for it it goes on to the same end.

The disk is a small file system in memory, which only root may mount. Its size decides which write fails first.

`ALIGN_WHOLE=1 ALIGN_KILLS=20 pytest tests/faults` is the whole of it.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align.runs import stable
from tests.end_to_end.helpers import BY_COMMAND
from tests.faults.child import ALGORITHMS, COMMON, typed, whole

KILLS = int(os.environ.get("ALIGN_KILLS", "1"))
ALL = 4096  # kB, enough for everything that these runs write
RUNS = {
    "grpo": (*ALGORITHMS["grpo"], "tracker=tensorboard"),
    "dpo": ALGORITHMS["dpo"],
    "ppo learned": ALGORITHMS["ppo learned"],
}


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[..., Path]]:
    """A folder that is a file system of so many kB, with more options of `mount` if any; called again it changes."""
    place = tmp_path / "disk"
    place.mkdir()

    def of(size: int, *options: str) -> Path:
        again = ["remount"] if os.path.ismount(place) else []
        what = ",".join([*again, f"size={size}k", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", what, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield of
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("algo", [a if a == "dpo" else pytest.param(a, marks=BY_COMMAND) for a in RUNS])
def test_a_run_goes_on_when_there_is_room_again(disk, tmp_path, algo):
    settings = (*COMMON, *RUNS[algo])
    code, said = typed(tmp_path / "said", *settings, f"run_dir={tmp_path}/whole/run", f"runs_root={tmp_path}/whole")
    assert code == 0, said
    run, weights = whole(tmp_path / "whole")
    used = sum(file.stat().st_size for file in (tmp_path / "whole").rglob("*")) // 1000
    sizes = random.Random(algo)
    failed = 0
    for number in range(KILLS):
        place = disk(sizes.randint(4, used if number else used // 2))
        here = (*settings, f"run_dir={place}/run", f"runs_root={place}", "resume=true")
        code, said = typed(tmp_path / "said", *here)
        failed += code != 0
        assert code in (0, 1, 2), said  # 1: not even its folder could be begun
        assert not code or ("No space left" in said.rpartition("error: ")[2] and "Traceback (" not in said), said
        disk(ALL)
        code, said = typed(tmp_path / "said", *here)
        assert code == 0, said
        again, same = whole(place)
        assert [stable(row) for row in again.rows] == [stable(row) for row in run.rows], number
        assert (again.samples, same) == (run.samples, weights)
        subprocess.run(["umount", "--lazy", place], check=True)
    assert failed, "some of these disks should have been too small"


def test_a_write_that_fails_ends_a_run_in_words_and_it_goes_on_to_the_same_end(tmp_path):
    """Without a file system of one's own: no file may be larger than so many bytes, whichever is the first to be."""
    settings = (*COMMON, *ALGORITHMS["grpo"], f"run_dir={tmp_path}/run", f"runs_root={tmp_path}")
    code, said = typed(tmp_path / "said", *settings)
    assert code == 0, said
    run, weights = whole(tmp_path)
    largest = max(file.stat().st_size for file in (tmp_path / "run").rglob("*"))
    for number in range(KILLS):
        folder = tmp_path / f"limited-{number}"
        here = (*settings, f"run_dir={folder}/run", "resume=true")
        limit = random.Random(f"size {number}").randint(1000, largest - 1)
        code, said = typed(tmp_path / "said", *here, largest=limit)
        assert code in (1, 2) and "File too large" in said.rpartition("error: ")[2], said
        assert "Traceback (" not in said, said
        code, said = typed(tmp_path / "said", *here)
        assert code == 0, said
        again, same = whole(folder)
        assert [stable(row) for row in again.rows] == [stable(row) for row in run.rows], number
        assert (again.samples, same) == (run.samples, weights)


def test_where_nothing_can_be_written_nothing_begins(disk, tmp_path):
    place = disk(ALL, "ro")
    code, said = typed(tmp_path / "said", *COMMON, *ALGORITHMS["dpo"], f"run_dir={place}/run")
    assert code == 1 and said.splitlines()[-1] == f"error: run_dir={place}/run cannot be written: Read-only file system"
