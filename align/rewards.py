"""From `reward.formula` to one callable that scores Completions and keeps every term apart."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from align.data import Data
from align.records import Completions
from align.refusals import ConfigError
from align.reward_model import RewardModel
from reward_models.base import RewardSource, Sample, weighted_sum, within
from reward_models.formula import parse
from reward_models.learned import LearnedReward
from reward_models.verifiers import length, terminated


@dataclass(frozen=True)
class Rewards:
    """A weighted sum of reward sources. `sources` maps a term to (weight, source); empty for reward=none."""

    sources: Mapping[str, tuple[float, RewardSource]]
    finite: bool = True  # False: a reward that is not finite is let through, and the loop leaves its completion out

    def __call__(self, completions: Completions) -> tuple[Tensor, dict[str, Tensor]]:
        """Total [B] and its unweighted terms, float32. Raises RewardError."""
        totals, components = weighted_sum(self.sources, samples_of(completions), finite=self.finite)
        return torch.tensor(totals), {name: torch.tensor(values) for name, values in components.items()}


def build_rewards(
    formula: str, data: Data, learned: RewardModel | None, *, finite: bool = True, seconds: float | None = None
) -> Rewards:
    """`seconds`: for a call of a function of the user's. Raises ConfigError for a term that cannot be had."""
    known: dict[str, RewardSource | None] = {
        "learned": LearnedReward(learned.score) if learned else None,
        "gold": data.gold,
        "verifier": data.verifier,
        "length": length,
        "terminated": terminated,
    }
    sources: dict[str, tuple[float, RewardSource]] = {}
    for name, weight in parse(formula).items():
        source = within(seconds, name, imported(name)) if ":" in name else known[name]
        if source is None:
            raise ConfigError(f"reward.formula={formula}: data={data.name} has no {name} to give")
        sources[name] = (weight, source)
    return Rewards(sources, finite)


def imported(name: str) -> RewardSource:
    """`package.module:function`, a function of a list of Samples. Raises ConfigError."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # a module of the user's: whatever its import raises is the user's to repair
        raise ConfigError(f"reward.formula={name}: cannot import {module}: {type(error).__name__}: {error}") from error
    if function is None:
        raise ConfigError(f"reward.formula={name}: {module} has no {attribute}")
    if not callable(function):
        raise ConfigError(f"reward.formula={name}: it is {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind([])
    except TypeError:
        raise ConfigError(
            f"reward.formula={name}: it must take one argument, the list of samples (reward_models.base.Sample)"
        ) from None
    except ValueError:
        pass  # some builtins have no signature; calling them will tell
    return function


def samples_of(completions: Completions) -> list[Sample]:
    rows = zip(completions.prompts, completions.prompt_ids, completions.ids, completions.mask, completions.texts,
               completions.finished.tolist(), strict=True)  # fmt: skip
    return [
        Sample(prompt.text, text, prompt_ids, tuple(ids[mask].tolist()), finished, prompt.info)
        for prompt, prompt_ids, ids, mask, text, finished in rows
    ]
