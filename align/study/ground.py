"""What measured studies stand on: one start model for all arms, its pool of answers, and what rewards learn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from align.config import config_hash, plain
from align.data import find_pool
from align.data.annotator import Pool, answers_to, check_settings, prompts
from align.device import resolve_device, resolve_dtype
from align.features import obtain_features
from align.models import Policy, load_policy
from align.refusals import ConfigError, need
from align.report.arms import SeedRun
from align.runs import RunRecord
from align.schema import Experiment
from align.stages import obtain_pool
from align.study.engine import Task
from align.study.judged import Arms
from align.study.verdict import assemble
from reward_models import heads
from reward_models.annotator import Answer, GoldScale, fit_scale
from reward_models.heads import Array
from reward_models.labels import LabelSettings, label_pairs

SIDES = ("chosen", "rejected")
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


@dataclass(frozen=True)
class Taught:
    """Answers to the training prompts, which labels are drawn on, and their frozen features."""

    answers: dict[str, list[Answer]]  # prompt id -> its answers, in the order of the features
    features: dict[float, Array]  # depth -> [answers, F], less their prompt's mean
    scale: GoldScale
    bases: dict[tuple[float, int], Array] = field(default_factory=dict)  # (depth, rank) -> coordinates
    labelled: dict[LabelSettings, tuple[list[int], list[int]]] = field(default_factory=dict)

    @cached_property
    def rows(self) -> dict[int, int]:
        """Identity of an answer -> its row of the features."""
        return {id(one): row for row, one in enumerate(one for group in self.answers.values() for one in group)}

    def basis(self, depth: float, rank: int) -> Array:
        if (depth, rank) not in self.bases:
            self.bases[depth, rank] = heads.coordinates(self.features[depth], rank)
        return self.bases[depth, rank]

    def pairs(self, labels: LabelSettings) -> tuple[list[int], list[int]]:
        """Rows of the chosen and of the rejected answers. Raises ConfigError when the pool has fewer pairs."""
        if labels not in self.labelled:
            pairs = label_pairs(self.answers, self.scale, labels).pairs
            need(len(pairs) == labels.pairs, "data.labels.pairs", labels.pairs, f"the pool has {len(pairs)}; lower it")
            chosen, rejected = ([self.rows[id(getattr(pair, side))] for pair in pairs] for side in SIDES)
            self.labelled[labels] = chosen, rejected
        return self.labelled[labels]


def teach(policy: Policy, pool: Pool, depths: Sequence[float], root: Path) -> Taught:
    """Features are computed where the cache has none."""
    taught = prompts("train")
    groups = answers_to(pool, taught)
    # in the pool answers stand prompt by prompt, and the prompts in the order of `groups`
    own = [row for row in pool.rows if row.prompt_id in groups]
    found = by_depth(obtain_features(policy, own, taught, depths, root), depths, len(taught))
    flat = {depth: table.reshape(-1, table.shape[-1]) for depth, table in found.items()}
    return Taught(groups, flat, fit_scale(list(groups.values())))


def by_depth(features: Tensor, depths: Sequence[float], asked: int) -> dict[float, Array]:
    """[answers, depths, F] of `asked` prompts -> depth -> [prompts, samples, F] less the prompt's mean"""
    split = features.double().unflatten(0, (asked, -1)).numpy()
    return {depth: heads.centred(split[:, :, i]) for i, depth in enumerate(depths)}


def each(tasks: Sequence[Task], judge: Callable[[Task], SeedRun]) -> Arms:
    """Every arm and seed, judged on its own."""
    by_arm: dict[str, list[SeedRun]] = {}
    for task in tasks:
        by_arm.setdefault(task.arm, []).append(judge(task))
    return assemble(by_arm)


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
