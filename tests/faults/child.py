"""Experiments, each in a process of its own, to be killed or told to end.

A fork server has imported the libraries beforehand, so that a start takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from align.runs import RunRecord, read
from tests.end_to_end.helpers import no_warmup

IMPORTED = [
    "tests.faults.child",
    "align.run",
    "align.experiment",
    "align.trainers.on_policy",
    "align.trainers.trl_runs",
]

# Dropout and a noisy reward: the global random streams must be continued too. Learned: the stage is killed as well.
ALGORITHMS = {
    "sft": (*no_warmup("sft"), "model.lora.dropout=0.1"),
    "reward": (*no_warmup("reward"), "model.lora.dropout=0.1"),
    "dpo": no_warmup("dpo"),
    "grpo": ("algo=grpo", "algo.kl.target_nats_per_sequence=0.01", "algo.kl.horizon_completions=100"),
    "rloo": ("algo=rloo", "algo.scale.normalise=running", "reward.formula=tests.end_to_end.bandit:noisy"),
    "ppo": ("algo=ppo", "algo.epochs=2", "algo.optimizer.schedule=linear"),
    "ppo learned": ("algo=ppo", "algo.critic.init=reward", "algo.scale.normalise=none", "reward=learned",
                    "reward.formula=learned",
                    "reward.learned.steps=4", "reward.learned.algo.optimizer.warmup_steps=0"),
    "dapo": ("algo=dapo", "algo.max_draws=2"),
}  # fmt: skip
COMMON = ("steps=8", "checkpoint.every=1", "probe.every=3", "algo.optimizer.lr=0.01", "seed=3")


def whole(folder: Path) -> tuple[RunRecord, dict[str, bytes]]:
    """What a run leaves behind that must not depend on kills."""
    run = read(folder / "run", samples=True)
    weights = {file.name: file.read_bytes() for file in sorted((folder / "run" / "adapter").glob("*.safetensors"))}
    return run, weights


def carry_out(folder: str, overrides: tuple[str, ...], quiet: bool = True) -> None:
    import torch

    from tests.end_to_end.helpers import execute

    torch.set_num_threads(1)
    flush = os.fsync

    def slowly(handle: int) -> None:
        """As on a slow disk: so that a good part of the kills lands while a checkpoint is being written."""
        time.sleep(0.01)
        flush(handle)

    os.fsync = slowly
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.suppress(KeyboardInterrupt),
        contextlib.redirect_stderr(nowhere) if quiet else contextlib.nullcontext(),
    ):
        execute(Path(folder), f"run_dir={folder}/run", *overrides)


def start(folder: Path, *overrides: str) -> BaseProcess:
    return _started(carry_out, str(folder), overrides)


def typed(said: Path, *overrides: str, largest: int | None = None) -> tuple[int | None, str]:
    """-> exit code of `python -m align.run ...`, and what it said."""
    child = _started(command, overrides, str(said), largest)
    child.join()
    return child.exitcode, said.read_text()


def within(folder: Path, limit: int | None, *overrides: str) -> int:
    """Carries it out in an address space of `limit` more bytes than it starts with. -> by how many it grew"""
    folder.mkdir(parents=True)
    child = _started(limited, str(folder), limit, overrides)
    child.join()
    assert child.exitcode == 0, (folder / "said.txt").read_text()
    return int((folder / "grown").read_text())


def limited(folder: str, limit: int | None, overrides: tuple[str, ...]) -> None:
    import resource

    def size(field: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024

    started = size("VmSize")
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (started + limit, started + limit))
    with open(Path(folder) / "said.txt", "w") as said, contextlib.redirect_stderr(said):
        carry_out(folder, overrides, quiet=False)
    (Path(folder) / "grown").write_text(str(size("VmPeak") - started))


def _started(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    child = context.Process(target=target, args=arguments)
    child.start()
    return child


def command(overrides: tuple[str, ...], said: str, largest: int | None = None) -> None:
    """`python -m align.run ...` as a user types it; what it says goes to a file. `largest`: bytes a file may have."""
    import resource
    import sys

    import torch

    from align.run import main
    from tests.end_to_end.helpers import TINY

    torch.set_num_threads(1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    sys.argv = ["align.run", *TINY, *overrides]
    with open(said, "w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        main()
