"""What a reward head on frozen features is, as overrides `heads.KEY=VALUE` of a study of kind `heads` or `refresh`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from align.refusals import finite, need, one_of, positive, refuse_unknown
from align.schema import Experiment

PREFIX = "heads."
# worst_case, uncertainty and weights are WCO, UWO and WARM (reward_models/heads.py)
COMBINE = ("mean", "worst_case", "uncertainty", "weights")
SOURCES = ("none", "start", "again", "policy")
OLD = ("mixed", "prior", "dropped")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "tuple[float, ...]": (lambda value: isinstance(value, list) and all(map(_number, value)), "a list of numbers"),
    "str": (lambda value: isinstance(value, str), "a word"),
    "int": (lambda value: _number(value) and isinstance(value, int), "a whole number"),
    "float": (_number, "a number"),
    "float | None": (lambda value: value is None or _number(value), "a number, or null"),
}


@dataclass(frozen=True)
class Heads:
    """Of an arm; every field is declared, there is no default."""

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


@dataclass(frozen=True)
class Refreshed(Heads):
    """Of an arm of kind `refresh` (align/study/refresh.py): a head whose labels come in two halves."""

    fresh: int  # further answers of the start model to each training prompt, for the second half
    source: (
        str  # which of each group of them are labelled: none, its first (start), its second (again), its best (policy)
    )
    old: str  # the first half is mixed in, only the prior of the second, or dropped
    flips: float  # of the second half's labels, in place of data.labels.flips

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self.fresh, "heads.fresh")
        one_of(self.source, SOURCES, "heads.source")
        one_of(self.old, OLD, "heads.old")
        finite(self.flips, "heads.flips", 0, 0.5)
        need(self.members == 1, "heads.members", self.members, "a study of kind refresh has one head to an arm: use 1")
        need(self.source != "none" or self.old == "mixed", "heads.old", self.old,
             "without a second half there is nothing in its place; use mixed, or another heads.source")  # fmt: skip


OF: Mapping[str, type[Heads]] = {"heads": Heads, "refresh": Refreshed}  # kind of study -> what its arms declare


def split(overrides: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Overrides of align.run, and those of heads."""
    heads = tuple(item for item in overrides if item.startswith(PREFIX))
    return tuple(item for item in overrides if item not in heads), heads


def parse(overrides: Sequence[str], made: type[Heads] = Heads) -> Heads:
    """Of one key the last counts already (engine.merged). Raises ConfigError naming key, value and fix."""
    given: dict[str, Any] = {}
    for item in overrides:
        key, _, text = item.removeprefix(PREFIX).partition("=")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            need(False, f"{PREFIX}{key}", text, "is no YAML value")
    known = {field.name: KINDS[str(field.type)] for field in fields(made)}
    refuse_unknown(given, list(known), "heads")
    for key, (fitting, words) in known.items():
        need(key in given, f"{PREFIX}{key}", "", "is missing: every setting of a head is declared by the study")
        need(fitting(given[key]), f"{PREFIX}{key}", given[key], f"must be {words}")
    return made(**given | {"depths": tuple(float(depth) for depth in given["depths"])})


def fits(experiment: Experiment, own: Heads) -> None:
    """What an arm's experiment must be for heads to stand in for its learned reward."""
    e = experiment
    need(e.algo.kind == "best_of_n", "algo", e.algo.name, "a study of kind heads judges by algo=best_of_n")
    need(e.data.kind == "annotator", "data", e.data.name, "heads need a gold score: use data=annotator")
    need(e.reward.formula == "learned" and e.reward.learned.run is None, "reward.formula", e.reward.formula,
         "a head stands in for the learned reward: use reward=learned alone")  # fmt: skip
    need(e.steps >= 2, "steps", e.steps, "is doublings of n: two or more make a curve")
    need(4 * 2**e.steps <= e.probe.samples, "probe.samples", e.probe.samples,
         f"best of 2^{e.steps} needs {4 * 2**e.steps} answers or more: with fewer than four times n, the estimator's "
         "variance explodes")  # fmt: skip
    if isinstance(own, Refreshed):
        need(
            e.data.labels.pairs % 2 == 0, "data.labels.pairs", e.data.labels.pairs, "comes in two halves: must be even"
        )
        need(e.data.labels.annotators == 1, "data.labels.annotators", e.data.labels.annotators,
             "a panel is drawn by the seed of its labels, so the halves would have two panels: use 1")  # fmt: skip
        need(own.fresh >= 2 * 2**e.steps, "heads.fresh", own.fresh,
             f"a pair takes two groups of 2^{e.steps}: must be {2 * 2**e.steps} or more")  # fmt: skip
