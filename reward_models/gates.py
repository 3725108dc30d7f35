"""What must hold before a study on the annotator may speak: gates on the base pool and on the learned reward.

A study whose gate fails prints INVALID. Thresholds are judgement (docs/design.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reward_models.annotator import Answer, GoldScale, gold
from reward_models.verifiers import CONSTRAINTS, constraint_kept

MAX_TRUNCATION = 0.10
PASS_RATE = (0.25, 0.75)  # over all kinds of constraint: outside, the verifier says too little about an answer
PASS_RATE_OF_A_KIND = (0.05, 0.95)  # outside, a kind is free or hopeless and might as well not be there
MIN_ORACLE_GAIN = 1.0  # within-prompt SDs, best of 8
MAX_LENGTH_CORRELATION = 0.10
MIN_RM_ACCURACY = {"weak": 0.60, "strong": 0.68}


@dataclass(frozen=True)
class Gate:
    """One condition: low <= value <= high."""

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high  # False for NaN: what could not be measured has not passed

    @property
    def threshold(self) -> str:
        if math.isinf(self.low):
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


def pool_gates(groups: Sequence[Sequence[Answer]], scale: GoldScale) -> list[Gate]:
    """Gates on a pool, one group of answers per prompt. Ask with prompts that the scale was not fitted on."""
    gates = [
        Gate("truncation", _mean([_truncated(group) for group in groups]), high=MAX_TRUNCATION),
        # Prompt by prompt: of 8 answers one truncated says little about a rate of 10 %, so this counts two or more.
        Gate("truncation/prompts", _mean([_truncated(group) >= 0.2 for group in groups]), high=MAX_TRUNCATION),
    ]
    rates = constraint_rates(groups)
    gates.append(Gate("constraint", _mean(list(rates.values())), *PASS_RATE))
    gates += [Gate(f"constraint/{kind}", rate, *PASS_RATE_OF_A_KIND) for kind, rate in rates.items()]
    gates.append(Gate("oracle/best_of_8", oracle_gain(groups, scale), low=MIN_ORACLE_GAIN))
    correlation = length_correlation(groups, scale)
    gates.append(Gate("gold/length_correlation", correlation, -MAX_LENGTH_CORRELATION, MAX_LENGTH_CORRELATION))
    return gates


def rm_gate(accuracy: float, kind: str = "weak") -> Gate:
    """Accuracy of a learned reward on held-out pairs against gold without noise. `kind`: weak (.60) or strong (.68)."""
    return Gate("rm/gold_accuracy", accuracy, low=MIN_RM_ACCURACY[kind])


def constraint_rates(groups: Sequence[Sequence[Answer]]) -> Mapping[str, float]:
    """Share of answers that keep their constraint, by kind of constraint."""
    kept: dict[str, list[bool]] = {}
    for answer in (answer for group in groups for answer in group):
        kept.setdefault(answer.info["constraint"], []).append(constraint_kept(answer.text, answer.info))
    return {kind: _mean(kept[kind]) for kind in CONSTRAINTS if kind in kept}


def oracle_gain(groups: Sequence[Sequence[Answer]], scale: GoldScale) -> float:
    """What the best of a prompt's first 8 answers by gold has above their mean, in within-prompt SDs. Normal: 1.42."""
    scores = [[gold(answer, scale) for answer in group[:8]] for group in groups if len(group) >= 8]
    return _mean([max(group) - float(np.mean(group)) for group in scores]) / scale.sd_gold


def length_correlation(groups: Sequence[Sequence[Answer]], scale: GoldScale) -> float:
    """Correlation of gold and tokens within prompts, finished answers."""
    products = np.zeros(3)
    for group in ([answer for answer in group if answer.finished] for group in groups):
        if group:
            score = np.array([gold(answer, scale) for answer in group])
            tokens = np.array([answer.tokens for answer in group], dtype=float)
            score, tokens = score - score.mean(), tokens - tokens.mean()
            products += (score @ tokens, score @ score, tokens @ tokens)
    return float(products[0] / math.sqrt(products[1] * products[2])) if products[1] * products[2] > 0 else math.nan


def _truncated(group: Sequence[Answer]) -> float:
    return _mean([not answer.finished for answer in group])


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
