"""Settings of modules `heads` and `refresh`: reward heads that are judged by the best of n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from align.refusals import finite, need, one_of, positive
from align.schema import Experiment

# worst_case, uncertainty and weights are WCO, UWO and WARM (reward_models/heads.py)
COMBINE = ("mean", "worst_case", "uncertainty", "weights")
SOURCES = ("none", "start", "again", "policy")
OLD = ("mixed", "prior", "dropped")


@dataclass(frozen=True)
class Heads:
    """A reward on frozen features (align/study/heads.py)."""

    WHAT: ClassVar[str] = (
        "Every arm is a reward on frozen features of the start model, its step s the best of 2^s answers by it; "
        "nothing else is trained."
    )

    depths: tuple[float, ...]  # shares of the model's layers; members take them in turn
    members: int  # 1: one head on all pairs; more: each on pairs drawn with replacement
    combine: str
    coef: float | None  # of the variance, combine=uncertainty alone
    rank: int  # coordinates of the features
    ridge: float

    def __post_init__(self) -> None:
        need(len(self.depths) > 0, "heads.depths", list(self.depths), "must name one depth at least, e.g. [0.667]")
        for depth in self.depths:
            finite(depth, "heads.depths", 0, 1, open_low=True)
        for key in ("members", "rank"):
            positive(getattr(self, key), f"heads.{key}")
        finite(self.ridge, "heads.ridge", 0)
        one_of(self.combine, COMBINE, "heads.combine")
        need(self.members >= len(self.depths), "heads.members", self.members,
             f"must be {len(self.depths)} or more: each of heads.depths={list(self.depths)}")  # fmt: skip
        need(self.members > 1 or self.combine == "mean", "heads.combine", self.combine,
             "one member alone is its mean; raise heads.members, or use mean")  # fmt: skip
        need(self.combine != "weights" or len(self.depths) == 1, "heads.combine", self.combine,
             "weights of different layers cannot be averaged; give heads.depths one depth")  # fmt: skip
        need((self.coef is None) == (self.combine != "uncertainty"), "heads.coef", self.coef,
             "weighs the variance of combine=uncertainty: a number there, null elsewhere")  # fmt: skip
        if self.coef is not None:
            finite(self.coef, "heads.coef", 0, open_low=True)

    def fits(self, experiment: Experiment) -> None:
        _stand_in(experiment, "heads")


@dataclass(frozen=True)
class Refreshed:
    """A head whose labels come in two halves (align/study/refresh.py)."""

    WHAT: ClassVar[str] = (
        "Every arm is a reward on frozen features of the start model, its step s the best of 2^s answers by it; "
        "nothing else is trained. rm/policy_accuracy is on pairs of the current policy's answers: the best of 2^s by "
        "the first reward, from the first half of the labels, the same in every arm of a seed."
    )

    depth: float  # share of the model's layers
    rank: int  # coordinates of the features
    ridge: float
    fresh: int  # further answers of the start model to each training prompt, for the second half
    source: str  # labelled of each group of them: none, its first (start), its second (again), its best (policy)
    old: str  # the first half is mixed in, only the prior of the second, or dropped
    flips: float  # of the second half's labels, in place of data.labels.flips

    def __post_init__(self) -> None:
        finite(self.depth, "refresh.depth", 0, 1, open_low=True)
        for key in ("rank", "fresh"):
            positive(getattr(self, key), f"refresh.{key}")
        finite(self.ridge, "refresh.ridge", 0)
        one_of(self.source, SOURCES, "refresh.source")
        one_of(self.old, OLD, "refresh.old")
        finite(self.flips, "refresh.flips", 0, 0.5)
        need(self.source != "none" or self.old == "mixed", "refresh.old", self.old,
             "without a second half there is nothing in its place; use mixed, or another refresh.source")  # fmt: skip

    def fits(self, experiment: Experiment) -> None:
        _stand_in(experiment, "refresh")
        labels, n = experiment.data.labels, 2**experiment.steps
        need(labels.pairs % 2 == 0, "data.labels.pairs", labels.pairs, "comes in two halves: must be even")
        need(labels.annotators == 1, "data.labels.annotators", labels.annotators,
             "a panel is drawn by the seed of its labels, so the halves would have two panels: use 1")  # fmt: skip
        need(self.fresh >= 2 * n, "refresh.fresh", self.fresh,
             f"a pair takes two groups of 2^{experiment.steps}: must be {2 * n} or more")  # fmt: skip


def _stand_in(e: Experiment, module: str) -> None:
    """What an experiment must be for a head to stand in for the learned reward of a best of n."""
    need(e.algo.kind == "best_of_n", "algo", e.algo.name, f"module={module} judges by algo=best_of_n")
    need(e.data.kind == "annotator", "data", e.data.name, "heads need a gold score: use data=annotator")
    need(e.reward.formula == "learned" and e.reward.learned.run is None, "reward.formula", e.reward.formula,
         "a head stands in for the learned reward: use reward=learned alone")  # fmt: skip
    need(e.steps >= 2, "steps", e.steps, "is doublings of n: two or more make a curve")
    need(4 * 2**e.steps <= e.probe.samples, "probe.samples", e.probe.samples,
         f"best of 2^{e.steps} needs {4 * 2**e.steps} answers or more: with fewer than four times n, the "
         "estimator's variance explodes")  # fmt: skip
