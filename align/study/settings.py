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
from align.study.head_settings import Heads, Refreshed


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
    "int | None": (lambda value: value is None or _whole(value), "a whole number, or null"),
    "float": (_number, "a number"),
    "float | None": (lambda value: value is None or _number(value), "a number, or null"),
}


@dataclass(frozen=True)
class Repetition:
    """A sentence behind copies of it, or continued by a decoder (align/study/repetition.py)."""

    WHAT: ClassVar[str] = (
        "Every arm is the start model itself: the log-probability of a sentence behind copies of it, or what a decoder "
        "makes of it. Nothing is trained; algo, reward and probe of the settings are not read."
    )

    sentences: int  # of a seed, each an answer to another prompt
    copies: int | None  # null: a decoder goes on from the sentence
    of: str  # whose copies
    continued: int  # sentences of a seed that a decoder goes on from
    tokens: int  # of each continuation
    temperature: float  # 0: the likeliest token
    top_p: float
    beams: int
    penalty: float  # logits of what was said already are divided by it (arXiv:1909.05858), below 0 multiplied

    def __post_init__(self) -> None:
        for key in ("sentences", "continued", "tokens", "beams"):
            positive(getattr(self, key), f"repetition.{key}")
        one_of(self.of, ("itself", "another"), "repetition.of")
        need(self.copies is None or self.copies >= 0, "repetition.copies", self.copies, "must be null, 0 or more")
        need(self.of == "itself" or (self.copies or 0) > 0, "repetition.of", self.of,
             "says whose copies stand before the sentence: give repetition.copies one or more")  # fmt: skip
        need(self.continued <= self.sentences, "repetition.continued", self.continued,
             f"must be at most repetition.sentences={self.sentences}")  # fmt: skip
        need(self.tokens >= 3, "repetition.tokens", self.tokens, "must be 3 or more: rep-3 is of trigrams")
        finite(self.temperature, "repetition.temperature", 0)
        finite(self.top_p, "repetition.top_p", 0, 1, open_low=True)
        finite(self.penalty, "repetition.penalty", 1)
        need(self.beams == 1 or self.temperature == 0, "repetition.beams", self.beams,
             "beams keep the likeliest sequences: use repetition.temperature=0")  # fmt: skip
        need(self.top_p == 1 or self.temperature > 0, "repetition.top_p", self.top_p,
             "cuts what is sampled from: use a repetition.temperature above 0")  # fmt: skip

    def fits(self, experiment: Experiment) -> None:
        """Its sentences are answers of the annotator's pool; it has one step."""
        e = experiment
        need(e.data.kind == "annotator", "data", e.data.name, "sentences are taken from the pool of data=annotator")
        need(e.steps == 1, "steps", e.steps, "module=repetition measures once: use steps=1")


@dataclass(frozen=True)
class Bench:
    """A reward that is judged on pairs of a small bench (align/study/rm_bench.py)."""

    WHAT: ClassVar[str] = (
        "Every arm is a reward: step 0 is a coin, step 1 the reward itself, on pairs of which one answer is known "
        "to be the better. No run is made; algo, reward and probe of the settings are not read."
    )

    reward: str
    depth: float  # share of the model's layers, of frozen features
    rank: int
    ridge: float
    pairs: int  # of each category
    gap: float  # in within-prompt SDs, of gold and of length, in length-adversarial pairs

    def __post_init__(self) -> None:
        one_of(self.reward, ("head", "decorrelated", "logprob", "length"), "rm_bench.reward")
        finite(self.depth, "rm_bench.depth", 0, 1, open_low=True)
        for key in ("rank", "pairs"):
            positive(getattr(self, key), f"rm_bench.{key}")
        finite(self.ridge, "rm_bench.ridge", 0)
        finite(self.gap, "rm_bench.gap", 0, open_low=True)

    def fits(self, experiment: Experiment) -> None:
        e = experiment
        need(e.data.kind == "annotator", "data", e.data.name, "the bench is made of answers of data=annotator")
        need(e.steps == 1, "steps", e.steps, "module=rm_bench measures once: use steps=1")


MODULES: Mapping[str, type[Settings]] = {
    "heads": Heads,
    "refresh": Refreshed,
    "repetition": Repetition,
    "rm_bench": Bench,
}


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
