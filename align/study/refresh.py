"""Studies of module `refresh`: is a reward better when half of its labels are on the current policy's answers?

A seed's labels come in two halves of as many pairs. The first is on the start model's answers and gives the first
reward, whose best of n = 2^steps is the current policy: exactly log n - (n - 1) / n nats from the start, and nothing is
trained. The second half is on pairs of further answers to the training prompts, in disjoint groups of n: of each
group's best by the first reward, which are the policy's own answers, or of any one, which are the start's. An arm is
the head of both halves (refresh.source, refresh.old).

Every arm is judged on the prompts of the probe, which no head was fitted to: by the gold of the best of n by itself,
as in module `heads`, and by its accuracy on pairs of the current policy's answers, the same pairs for all arms of a
seed. Answers, as there, are one sample for all seeds; a seed draws pairs, labels and groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from align.data.annotator import answers_to, label_settings, prompts
from align.data.dataset import digest
from align.features import obtain_features
from align.maths.best_of_n import best_pair_accuracy
from align.refusals import need
from align.report.arms import SeedRun
from align.seeds import derive
from align.stages import answered, stages_root
from align.study import heads
from align.study.engine import Task
from align.study.ground import as_run, by_depth, each, start
from align.study.head_settings import Refreshed
from align.study.judged import Arms
from reward_models import heads as fits
from reward_models.annotator import Answer
from reward_models.heads import Array
from reward_models.labels import LabelSettings, label_pairs


@dataclass(frozen=True)
class Ground:
    """What all arms stand on: that of module `heads`, and further answers to its training prompts."""

    first: heads.Ground
    fresh: Mapping[str, Sequence[Answer]]  # prompt -> answers, none of them among first.taught.answers
    features: Mapping[float, Array]  # depth -> [prompts, fresh, F], less the prompt's mean

    @cached_property
    def rows(self) -> dict[int, tuple[int, int]]:
        """Identity of a fresh answer -> its prompt and number."""
        groups = enumerate(self.fresh.values())
        return {id(answer): (x, k) for x, group in groups for k, answer in enumerate(group)}

    @cached_property
    def start(self) -> dict[tuple[str, int], dict[str, float]]:
        """Rows of step 0: there the policy is the start."""
        return {key: row | {"policy_drop": 0.0} for key, row in self.first.judged.start.items()}


def measure(tasks: Sequence[Task]) -> Arms:
    """Fit and judge every head. Raises ConfigError, DataError, ModelError, RewardError."""
    ground = lay(tasks)
    return each(tasks, lambda task: judge(ground, task))


def lay(tasks: Sequence[Task]) -> Ground:
    """Pools and features, sampled and computed where the cache has none."""
    many = sorted({_of(task).fresh for task in tasks})
    need(len(many) == 1, "refresh.fresh", many, "must be the same in all arms: their second halves are drawn from the "
         "same answers")  # fmt: skip
    policy, pool = start(tasks)
    e, depths = tasks[0].experiment, sorted({_of(task).depth for task in tasks})
    first = heads.stand(e, policy, pool, depths)
    taught, root, known = prompts("train"), stages_root(e), e.data.pool.samples
    # An answer's random numbers are named by its prompt and number: the first ones are those of the first half's pool.
    more = answered(replace(e.data, pool=replace(e.data.pool, samples=known + many[0])), e, policy, taught)
    more = replace(more, rows=tuple(row for row in more.rows if row.sample >= known))
    features = by_depth(obtain_features(policy, more.rows, taught, depths, root), depths, len(taught))
    told = [first.meta["data_fingerprint"], [[row.prompt_id, row.text] for row in more.rows]]
    meta = first.meta | {"data_fingerprint": digest(told)}
    return Ground(replace(first, meta=meta), answers_to(more, taught), features)


def judge(ground: Ground, task: Task) -> SeedRun:
    """Fit an arm's head to a seed's labels in two halves, and judge it by gold and on the current policy's answers."""
    own, first, doublings = _of(task), ground.first, task.experiment.steps
    known, labels = first.taught.features[own.depth], label_settings(task.experiment.data)
    half, basis = replace(labels, pairs=labels.pairs // 2), first.taught.basis(own.depth, own.rank)
    chosen, rejected = first.taught.pairs(half)
    old = (known[chosen] - known[rejected]) @ basis
    early = fits.bradley_terry(old, own.ridge)
    late = replace(half, seed=derive(labels.seed, "second half"), flips=own.flips)
    new = second_half(ground, own, late, ground.features[own.depth] @ basis, early, 2**doublings)
    bought = len(old) + len(new)
    assert bought == (labels.pairs if own.source != "none" else half.pairs), (task.name, bought)
    deviations = first.judged.features[own.depth] @ basis
    # rewards of standard deviation 1 over the training prompts
    proxy = deviations @ fits.unit(final(own, old, new, early), known @ basis)
    run = heads.curve(first.judged, proxy, as_run(task, first.meta), doublings)
    return _with_accuracy(run, ground, deviations @ early, proxy, bought)


def second_half(ground: Ground, own: Refreshed, labels: LabelSettings, features: Array, early: Array, n: int) -> Array:
    """[pairs, rank] coordinates of chosen less rejected answers; no pair with refresh.source=none.

    features [P, K, rank]. Raises ConfigError when the groups give fewer pairs than asked for: both halves have as many.
    """
    if own.source == "none":
        return np.zeros((0, features.shape[-1]))
    which = picks(features @ early, n, own.source, derive(labels.seed, "groups"))
    taken = {name: [group[k] for k in row] for (name, group), row in zip(ground.fresh.items(), which, strict=True)}
    pairs = label_pairs(taken, ground.first.taught.scale, labels).pairs
    need(len(pairs) == labels.pairs, "refresh.fresh", own.fresh,
         f"{len(pairs)} pairs of groups of {n} have two finished, different answers, and half of data.labels.pairs is "
         f"{labels.pairs}; raise it, or lower those")  # fmt: skip
    return np.array([features[ground.rows[id(p.chosen)]] - features[ground.rows[id(p.rejected)]] for p in pairs])


def picks(rewards: Array, n: int, source: str, seed: int) -> Any:
    """[prompts, answers] rewards -> [prompts, groups]: which answer of each of a prompt's disjoint groups of n, drawn
    by the seed alone: its best (policy), or one that the rewards have no part in, its first (start) or second (again).
    """
    P, K = rewards.shape
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(K), (P, 1)), axis=1)
    groups = order[:, : K // n * n].reshape(P, K // n, n)
    if source != "policy":
        return groups[:, :, ("start", "again").index(source)]
    best = rewards[np.arange(P)[:, None, None], groups].argmax(-1)
    return np.take_along_axis(groups, best[..., None], -1)[..., 0]


def final(own: Refreshed, old: Array, new: Array, early: Array) -> Array:
    """The arm's head, in coordinates."""
    if own.old == "mixed":
        return fits.bradley_terry(np.concatenate([old, new]), own.ridge)
    return fits.bradley_terry(new, own.ridge, early if own.old == "prior" else None)


def _with_accuracy(run: SeedRun, ground: Ground, chooser: Array, proxy: Array, bought: int) -> SeedRun:
    """The rows with the accuracy on pairs of the current policy's answers, which at step s is the best of 2^s."""
    mine, ranked, gold = (torch.from_numpy(x) for x in (proxy, chooser, ground.first.judged.gold))
    at = {step: best_pair_accuracy(ranked, mine, gold, 2**step).numpy() for step in run.probes}
    probes = {step: dict(row) for step, row in run.probes.items()}
    samples: dict[int, Any] = {0: ground.start}
    for step in range(1, len(at)):
        probes[step] |= {"rm/policy_accuracy": float(at[step].mean())}
        probes[step] |= {"rm/policy_drop": float((at[0] - at[step]).mean())}
        samples[step] = {
            (name, k): row | {"policy_accuracy": float(at[step][x]), "policy_drop": float(at[0][x] - at[step][x])}
            for x, ((name, k), row) in enumerate(run.samples[step].items())
        }  # fmt: skip
    probes[0] |= {"rm/policy_drop": 0.0}
    probes[run.last or 0] |= {"rm/labels": bought}
    return replace(run, probes=probes, samples=samples)


def _of(task: Task) -> Refreshed:
    assert isinstance(task.own, Refreshed)
    return task.own
