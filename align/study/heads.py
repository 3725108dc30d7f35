"""Studies of kind `heads`: reward heads on frozen features, each the proxy by which the best of n answers is taken.

An arm and a seed are one best-of-n that is never run: N answers of the start model to each prompt of the probe are
sampled once, and the gold of the best of n = 1, 2, 4, ... by a head is estimated from all subsets of n of them
(align/maths/best_of_n.py). Heads are fitted to pairs of the training prompts, whose topics no prompt of the probe
shares. What comes out has the form of finished runs of algo=best_of_n, so the study's rules, page and tables are those
of trained studies. A seed draws pairs, labels and bootstraps; the answers are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from align.config import config_hash, plain
from align.data import find_pool
from align.data.annotator import answers_to, check_settings, label_settings, prompts
from align.data.dataset import digest
from align.device import resolve_device, resolve_dtype
from align.features import obtain_features
from align.maths.best_of_n import expected_best, kl_bound
from align.models import load_policy
from align.records import Prompt
from align.refusals import ConfigError, need
from align.report.arms import SeedRun
from align.runs import RunRecord
from align.schema import Experiment
from align.seeds import derive
from align.stages import answered, obtain_pool, stages_root
from align.study.engine import Task
from align.study.settings import Heads
from align.study.verdict import Arms, assemble
from reward_models import heads
from reward_models.annotator import Answer, GoldScale, fit_scale, gold
from reward_models.heads import Array
from reward_models.labels import LabelSettings, label_pairs

SIDES = ("chosen", "rejected")
ORACLE = 16  # gate: the best of so many by gold itself
SAME = ("model", "dtype", "device", "probe", "steps")  # in all arms, beside data.pool


@dataclass(frozen=True)
class Judged:
    """N answers to each prompt of the probe. All [prompts, N] but the features, [prompts, N, F]."""

    prompts: tuple[str, ...]
    features: dict[float, Array]  # depth -> less the prompt's mean
    gold: Array
    tokens: Array
    finished: Array

    @cached_property
    def start(self) -> dict[tuple[str, int], dict[str, float]]:
        """Rows of step 0, every answer: they do not depend on the head."""
        return {
            (name, k): {"gold": float(self.gold[x, k]), "tokens": float(self.tokens[x, k]), "bon_a": 0.0, "bon_b": 0.0}
            for x, name in enumerate(self.prompts) for k in range(self.gold.shape[1])
        }  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """What all arms stand on."""

    train: dict[str, list[Answer]]
    rows: dict[int, int]  # identity of a training answer -> its row of the features
    features: dict[float, Array]  # depth -> [answers, F] of the training answers, less their prompt's mean
    scale: GoldScale
    judged: Judged
    meta: dict[str, str]
    bases: dict[tuple[float, int], Array] = field(default_factory=dict)  # (depth, rank) -> coordinates
    labelled: dict[LabelSettings, tuple[list[int], list[int]]] = field(default_factory=dict)

    def basis(self, depth: float, rank: int) -> Array:
        if (depth, rank) not in self.bases:
            self.bases[depth, rank] = heads.coordinates(self.features[depth], rank)
        return self.bases[depth, rank]

    def pairs(self, labels: LabelSettings) -> tuple[list[int], list[int]]:
        """Rows of the chosen and of the rejected answers. Raises ConfigError when the pool has fewer pairs."""
        if labels not in self.labelled:
            pairs = label_pairs(self.train, self.scale, labels).pairs
            need(len(pairs) == labels.pairs, "data.labels.pairs", labels.pairs, f"the pool has {len(pairs)}; lower it")
            chosen, rejected = ([self.rows[id(getattr(pair, side))] for pair in pairs] for side in SIDES)
            self.labelled[labels] = chosen, rejected
        return self.labelled[labels]


def measure(tasks: Sequence[Task]) -> Arms:
    """Fit and judge every head. Raises ConfigError, DataError, ModelError, RewardError."""
    ground = lay(tasks)
    return gathered(tasks, lambda task: judge(ground, task))


def gathered(tasks: Sequence[Task], judged: Callable[[Task], SeedRun]) -> Arms:
    by_arm: dict[str, list[SeedRun]] = {}
    for task in tasks:
        by_arm.setdefault(task.arm, []).append(judged(task))
    return assemble(by_arm)


def lay(tasks: Sequence[Task]) -> Ground:
    """Pools and features, sampled and computed where the cache has none."""
    e = tasks[0].experiment
    _refuse_different(tasks)
    device = resolve_device(e.device)
    policy = load_policy(e.model, device, resolve_dtype(e.dtype, device), 0)
    pool = find_pool(e.data, lambda cfg: obtain_pool(cfg, e, policy))
    check_settings(e.data, pool)
    asked, root = prompts("eval")[: e.probe.prompts], stages_root(e)
    many = replace(e.data, pool=replace(e.data.pool, samples=e.probe.samples))
    more = answered(many, e, policy, asked)
    depths = sorted({depth for task in tasks for depth in _of(task).depths})
    taught = prompts("train")
    groups = answers_to(pool, taught)
    own = [row for row in pool.rows if row.prompt_id in groups]
    train, judged = (
        by_depth(obtain_features(policy, rows, of, depths, root), depths, of)
        for rows, of in ((own, taught), (more.rows, asked))
    )
    scale = fit_scale(list(groups.values()))
    # in the pool answers stand prompt by prompt, and the prompts in the order of `groups`
    answers = [answer for group in groups.values() for answer in group]
    fingerprint = digest([[asdict(row) for row in (*own, *more.rows)], scale.digest()])
    return Ground(
        groups,
        {id(answer): row for row, answer in enumerate(answers)},
        {depth: table.reshape(-1, table.shape[-1]) for depth, table in train.items()},
        scale,
        _judged(answers_to(more, asked), judged, scale),
        {"start_fingerprint": policy.fingerprint, "data_fingerprint": fingerprint},
    )


def judge(ground: Ground, task: Task) -> SeedRun:
    """Fit an arm's heads to a seed's labels, and take the best of n by them."""
    own, pairs = _of(task), ground.pairs(label_settings(task.experiment.data))
    members = [
        (depth, fit(ground, own, depth, pairs, derive(task.seed, "bootstrap", k)))
        for k, depth in zip(range(own.members), own.depths * own.members, strict=False)
    ]
    proxy = _combined(own, members, ground.judged)
    return curve(ground.judged, proxy, recorded(task, ground.meta), task.experiment.steps)


def recorded(task: Task, meta: Mapping[str, str]) -> RunRecord:
    """What a run directory would say of the experiment."""
    config = plain(task.experiment) | {"heads": asdict(_of(task))}
    return RunRecord(Path(), config, {**meta, "config_hash": config_hash(config)}, "finished", ())


def fit(ground: Ground, own: Heads, depth: float, pairs: tuple[list[int], list[int]], seed: int) -> Array:
    """A member: [F], with rewards of standard deviation 1 within the training prompts. `seed` is of its bootstrap."""
    features, basis = ground.features[depth], ground.basis(depth, own.rank)
    chosen, rejected = pairs
    differences = (features[chosen] - features[rejected]) @ basis
    if own.members > 1:
        differences = differences[np.random.default_rng(seed).integers(len(chosen), size=len(chosen))]
    return heads.unit(basis @ heads.bradley_terry(differences, own.ridge), features)


def _combined(own: Heads, members: Sequence[tuple[float, Array]], judged: Judged) -> Array:
    """The arm's proxy of every judged answer, less its mean over a prompt's answers. [prompts, N]"""
    if own.combine == "weights":
        return judged.features[own.depths[0]] @ heads.average_weights(np.stack([head for _, head in members]))
    rewards = np.stack([judged.features[depth] @ head for depth, head in members])
    ways = {"mean": heads.mean, "worst_case": heads.worst_case}
    if own.coef is not None:
        ways["uncertainty"] = lambda rewards: heads.uncertainty_weighted(rewards, own.coef or 0.0)
    return heads.centred(ways[own.combine](rewards))


def curve(judged: Judged, proxy: Array, record: RunRecord, doublings: int) -> SeedRun:
    """A best-of-n as its run would have left it: step s is the best of 2^s."""
    at = {step: _best(judged, proxy, 2**step) for step in range(doublings + 1)}
    probes = {step: _probe(row, step) for step, row in at.items()}
    a, b = parabola(np.stack([row["gold"] for row in at.values()]))
    at[doublings] |= {"bon_a": a, "bon_b": b}
    samples = {step: _rows(judged.prompts, row) for step, row in at.items()} | {0: judged.start}
    rho = spearmanr(list(probes), [probe["reward/proxy"] for probe in probes.values()]).statistic
    probes[0] |= {"reward/proxy": 0.0, "bon/a": 0.0, "bon/b": 0.0}
    probes[doublings] |= {"bon/a": float(a.mean()), "bon/b": float(b.mean()), "bon/proxy_rho": float(rho)}
    probes[doublings] |= _quality(judged, proxy)
    return SeedRun(record, record.config["seed"], probes, samples)


def _rows(names: Sequence[str], row: dict[str, Array]) -> dict[tuple[str, int], dict[str, float]]:
    return {(name, 0): {key: float(values[x]) for key, values in row.items()} for x, name in enumerate(names)}


def parabola(gold_at: Array) -> tuple[Array, Array]:
    """R = d (a - b d) by least squares, R the gain in gold over n = 1 at d = sqrt(KL of the best of n).

    gold_at [steps, prompts], of n = 1, 2, 4, ... -> a, b [prompts]; their means are the fit of the mean curve
    (arXiv:2210.10760, there over n to 1000).
    """
    d = np.sqrt([kl_bound(2**step) for step in range(1, len(gold_at))])
    design = np.stack([d, -(d**2)], 1)
    a, b = np.linalg.lstsq(design, gold_at[1:] - gold_at[0], rcond=None)[0]
    return a, b


def _best(judged: Judged, proxy: Array, n: int) -> dict[str, Array]:
    """Expected values of the best of n by the proxy. [prompts] each"""
    values = {"gold": judged.gold, "reward": proxy, "tokens": judged.tokens, "finished": judged.finished}
    ranked = torch.from_numpy(proxy)
    return {key: expected_best(ranked, torch.from_numpy(own), n).numpy() for key, own in values.items()}


def _probe(row: dict[str, Array], step: int) -> dict[str, float]:
    mean = {key: float(values.mean()) for key, values in row.items()}
    return {"kl/bound": kl_bound(2**step), "reward/gold": mean["gold"], "reward/proxy": mean["reward"],
            "length/mean": mean["tokens"], "length/truncated": 1 - mean["finished"]}  # fmt: skip


def _quality(judged: Judged, proxy: Array) -> dict[str, float]:
    """What gates ask of a head and of the answers that it is judged on."""
    n = min(ORACLE, judged.gold.shape[1] // 4)
    mine = torch.from_numpy(judged.gold)
    gain = float(expected_best(mine, mine, n).mean()) - float(judged.gold.mean())
    within = float(np.sqrt(judged.gold.var(1, ddof=1).mean()))
    return {
        "rm/gold_accuracy": heads.pair_accuracy(proxy, judged.gold, judged.finished > 0),
        "pool/oracle_gain": gain / within,
        "pool/truncated": 1 - float(judged.finished.mean()),
    }


def _judged(groups: dict[str, list[Answer]], features: dict[float, Array], scale: GoldScale) -> Judged:
    def table(of: Any) -> Array:
        return np.array([[float(of(answer)) for answer in group] for group in groups.values()])

    return Judged(tuple(groups), features, table(lambda answer: gold(answer, scale)),
                  table(lambda answer: answer.tokens), table(lambda answer: answer.finished))  # fmt: skip


def by_depth(features: Tensor, depths: Sequence[float], asked: Sequence[Prompt]) -> dict[float, Array]:
    """[answers, depths, F] -> depth -> [prompts, samples, F] less the prompt's mean"""
    split = features.double().unflatten(0, (len(asked), -1)).numpy()
    return {depth: heads.centred(split[:, :, i]) for i, depth in enumerate(depths)}


def _refuse_different(tasks: Sequence[Task]) -> None:
    def ruler(e: Experiment) -> list[Any]:
        return [getattr(e, key) for key in SAME] + [e.data.pool]

    for task in tasks:
        if ruler(task.experiment) != ruler(tasks[0].experiment):
            raise ConfigError(f"arms {tasks[0].arm} and {task.arm}: heads are judged on the same answers: "
                              f"{', '.join(SAME)} and data.pool must not differ between arms")  # fmt: skip


def _of(task: Task) -> Heads:
    assert task.heads is not None
    return task.heads
