"""Studies of module `heads`: reward heads on frozen features, each the proxy by which the best of n answers is taken.

An arm and a seed are one best-of-n that is never run: N answers of the start model to each prompt of the probe are
sampled once, and the gold of the best of n = 1, 2, 4, ... by a head is estimated from all subsets of n of them
(align/maths/best_of_n.py). Heads are fitted to pairs of the training prompts, whose topics no prompt of the probe
shares. What comes out has the form of finished runs of algo=best_of_n, so the study's rules, page and tables are those
of trained studies. A seed draws pairs, labels and bootstraps; the answers are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from align.data.annotator import Pool, answers_to, label_settings, prompts
from align.data.dataset import digest
from align.features import obtain_features
from align.maths.best_of_n import expected_best, kl_bound
from align.models import Policy
from align.report.arms import SeedRun
from align.runs import RunRecord
from align.schema import Experiment
from align.seeds import derive
from align.stages import answered, stages_root
from align.study.engine import Task
from align.study.ground import Taught, as_run, by_depth, each, start, teach
from align.study.head_settings import Heads
from align.study.judged import Arms
from reward_models import heads
from reward_models.annotator import Answer, GoldScale, gold
from reward_models.heads import Array

ORACLE = 16  # gate: the best of so many by gold itself


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

    taught: Taught
    judged: Judged
    meta: dict[str, str]


def measure(tasks: Sequence[Task]) -> Arms:
    """Fit and judge every head. Raises ConfigError, DataError, ModelError, RewardError."""
    ground = lay(tasks)
    return each(tasks, lambda task: judge(ground, task))


def lay(tasks: Sequence[Task]) -> Ground:
    policy, pool = start(tasks)
    return stand(tasks[0].experiment, policy, pool, sorted({depth for task in tasks for depth in _of(task).depths}))


def stand(e: Experiment, policy: Policy, pool: Pool, depths: Sequence[float]) -> Ground:
    """Answers to judge and features, sampled and computed where the cache has none."""
    asked, root = prompts("eval")[: e.probe.prompts], stages_root(e)
    many = replace(e.data, pool=replace(e.data.pool, samples=e.probe.samples))
    more = answered(many, e, policy, asked)
    taught = teach(policy, pool, depths, root)
    judged = by_depth(obtain_features(policy, more.rows, asked, depths, root), depths, len(asked))
    own = [row for row in pool.rows if row.prompt_id in taught.answers]
    fingerprint = digest([[asdict(row) for row in (*own, *more.rows)], taught.scale.digest()])
    meta = {"start_fingerprint": policy.fingerprint, "data_fingerprint": fingerprint}
    return Ground(taught, _judged(answers_to(more, asked), judged, taught.scale), meta)


def judge(ground: Ground, task: Task) -> SeedRun:
    """Fit an arm's heads to a seed's labels, and take the best of n by them."""
    own, pairs = _of(task), ground.taught.pairs(label_settings(task.experiment.data))
    members = [
        (depth, fit(ground.taught, own, depth, pairs, derive(task.seed, "bootstrap", k)))
        for k, depth in zip(range(own.members), own.depths * own.members, strict=False)
    ]
    proxy = _combined(own, members, ground.judged)
    return curve(ground.judged, proxy, as_run(task, ground.meta), task.experiment.steps)


def fit(taught: Taught, own: Heads, depth: float, pairs: tuple[list[int], list[int]], seed: int) -> Array:
    """A member: [F], with rewards of standard deviation 1 within the training prompts. `seed` is of its bootstrap."""
    features, basis = taught.features[depth], taught.basis(depth, own.rank)
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


def _of(task: Task) -> Heads:
    assert isinstance(task.own, Heads)
    return task.own
