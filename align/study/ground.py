"""What a measured study stands on: one start model for all arms, and its pool of answers to the annotator's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.config import config_hash, plain
from align.data import find_pool
from align.data.annotator import Pool, check_settings
from align.device import resolve_device, resolve_dtype
from align.models import Policy, load_policy
from align.refusals import ConfigError
from align.runs import RunRecord
from align.schema import Experiment
from align.stages import obtain_pool
from align.study.engine import Task

SAME = ("model", "dtype", "device", "probe", "steps")  # in all arms, beside data.pool


def start(tasks: Sequence[Task]) -> tuple[Policy, Pool]:
    """Of all arms; the pool is sampled where there is none. Raises ConfigError, DataError, ModelError."""
    e = tasks[0].experiment
    _refuse_different(tasks)
    device = resolve_device(e.device)
    policy = load_policy(e.model, device, resolve_dtype(e.dtype, device), 0)
    pool = find_pool(e.data, lambda cfg: obtain_pool(cfg, e, policy))
    check_settings(e.data, pool)
    return policy, pool


def as_run(task: Task, meta: dict[str, Any]) -> RunRecord:
    """The run of an arm and a seed, as if there had been one; `meta` has the fingerprints of what was measured."""
    assert task.own is not None
    config = plain(task.experiment) | {"own": asdict(task.own)}  # type: ignore[call-overload]
    return RunRecord(Path(), config, meta | {"config_hash": config_hash(config)}, "finished", ())


def _refuse_different(tasks: Sequence[Task]) -> None:
    def ruler(e: Experiment) -> list[Any]:
        return [getattr(e, key) for key in SAME] + [e.data.pool]

    for task in tasks:
        if ruler(task.experiment) != ruler(tasks[0].experiment):
            raise ConfigError(f"arms {tasks[0].arm} and {task.arm}: all are measured on the same answers: "
                              f"{', '.join(SAME)} and data.pool must not differ between arms")  # fmt: skip
