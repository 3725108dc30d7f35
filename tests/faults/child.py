"""One experiment in a process of its own, to be killed. A fork server has imported the libraries beforehand, so that a
start takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["tests.faults.child", "align.experiment", "align.trainers.on_policy", "align.trainers.trl_runs"]


def carry_out(folder: str, overrides: tuple[str, ...]) -> None:
    import torch

    from tests.end_to_end.helpers import execute

    torch.set_num_threads(1)
    flush = os.fsync

    def slowly(handle: int) -> None:
        """As on a slow disk: so that a good part of the kills lands while a checkpoint is being written."""
        time.sleep(0.01)
        flush(handle)

    os.fsync = slowly
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        execute(Path(folder), f"run_dir={folder}/run", *overrides)


def start(folder: Path, *overrides: str) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    child = context.Process(target=carry_out, args=(str(folder), overrides))
    child.start()
    return child
