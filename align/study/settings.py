"""Own settings of studies that are measured in this process: overrides `MODULE.KEY=VALUE`, one record per module.

A study of kind `measured` names a module of align.study. It has `measure(tasks) -> Arms`, and here a record in MODULES:
its fields are the settings, all of them declared by the study, `WHAT` is what the page says of its arms, and `fits`
refuses experiments that it cannot stand in for. Nothing here needs torch, so what is wrong is said at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import yaml

from align.refusals import finite, need, one_of, positive, refuse_unknown
from align.schema import Experiment

# worst_case, uncertainty and weights are WCO, UWO and WARM (reward_models/heads.py)
COMBINE = ("mean", "worst_case", "uncertainty", "weights")


class Settings(Protocol):
    """What an arm of a measured study is."""

    WHAT: ClassVar[str]

    def fits(self, experiment: Experiment) -> None: ...


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return _number(value) and isinstance(value, int)


KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "tuple[float, ...]": (lambda value: isinstance(value, list) and all(map(_number, value)), "a list of numbers"),
    "str": (lambda value: isinstance(value, str), "a word"),
    "int": (_whole, "a whole number"),
    "float": (_number, "a number"),
    "float | None": (lambda value: value is None or _number(value), "a number, or null"),
}


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
        """A head stands in for the learned reward of a best of n."""
        e = experiment
        need(e.algo.kind == "best_of_n", "algo", e.algo.name, "module=heads judges by algo=best_of_n")
        need(e.data.kind == "annotator", "data", e.data.name, "heads need a gold score: use data=annotator")
        need(e.reward.formula == "learned" and e.reward.learned.run is None, "reward.formula", e.reward.formula,
             "a head stands in for the learned reward: use reward=learned alone")  # fmt: skip
        need(e.steps >= 2, "steps", e.steps, "is doublings of n: two or more make a curve")
        need(4 * 2**e.steps <= e.probe.samples, "probe.samples", e.probe.samples,
             f"best of 2^{e.steps} needs {4 * 2**e.steps} answers or more: with fewer than four times n, the "
             "estimator's variance explodes")  # fmt: skip


MODULES: Mapping[str, type[Settings]] = {"heads": Heads}


def split(module: str, overrides: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Overrides of align.run, and those of the module."""
    own = tuple(item for item in overrides if item.startswith(f"{module}."))
    return tuple(item for item in overrides if item not in own), own


def read(module: str, overrides: Sequence[str]) -> Settings:
    """Of one key the last counts already (engine.merged). Raises ConfigError naming key, value and fix."""
    given: dict[str, Any] = {}
    for item in overrides:
        key, _, text = item.removeprefix(f"{module}.").partition("=")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            need(False, f"{module}.{key}", text, "is no YAML value")
    record = MODULES[module]
    known = {field.name: KINDS[str(field.type)] for field in fields(record)}  # type: ignore[arg-type]
    refuse_unknown(given, list(known), module)
    for key, (fitting, words) in known.items():
        need(key in given, f"{module}.{key}", "", "is missing: every setting of a module is declared by the study")
        need(fitting(given[key]), f"{module}.{key}", given[key], f"must be {words}")
    return record(**{key: tuple(map(float, value)) if isinstance(value, list) else value
                     for key, value in given.items()})  # fmt: skip
