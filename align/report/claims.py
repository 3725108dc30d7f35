"""Differences with a verdict. Every sentence and table that says "higher" or "lower" gets the word from here.

What the project asks about, reward, KL and length, is declared beforehand (`Metric.outcome`): the arms' differences in
one outcome are a family. All other differences of a table are one more. A word is said when Holm's adjustment over the
family leaves p below 0.05 and the 95% interval leaves out zero; everything else is "not shown", which is not "equal".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from align.report.inference import Difference, holm
from align.report.metrics import Metric
from align.report.text import number

K = TypeVar("K", bound=Hashable)
ALPHA = 0.05
HIGHER, LOWER, NOT_SHOWN = "higher", "lower", "not shown"
ONE_SEED, ONE_SEED_ONLY = "on these prompts, one seed", "cannot be said: one seed"


@dataclass(frozen=True)
class Claim:
    """A difference as one member of its family."""

    metric: Metric
    difference: Difference
    p: float | None  # adjusted over the family; None where there is no test
    family: int  # how many differences were tested

    @property
    def decided(self) -> bool:
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or self.p is None:
            return False
        return bool(self.p < ALPHA and (low > 0 or high < 0))

    @property
    def word(self) -> str:
        """higher, lower, not shown or cannot be said."""
        if self.difference.low is None or self.p is None:
            return ONE_SEED_ONLY
        if not self.decided:
            return NOT_SHOWN
        return HIGHER if self.difference.mean > 0 else LOWER

    @property
    def verdict(self) -> str:
        """The word and, where only prompts vouch for it, what it does not say."""
        return f"{self.word} {ONE_SEED}" if self.decided and self.by_prompts else self.word

    @property
    def by_prompts(self) -> bool:
        return self.difference.by == "prompts"

    @property
    def mean(self) -> str:
        return self.metric.show(self.difference.mean, sign=True)

    @property
    def interval(self) -> str:
        return self.metric.interval(self.difference.low, self.difference.high)

    @property
    def basis(self) -> str:
        """What the interval rests on: "3 seeds, 32 prompts" or "32 prompts of one seed"."""
        seeds, prompts = self.difference.seeds, self.difference.prompts
        if self.by_prompts:
            return f"{prompts} prompts of one seed"
        return f"{seeds} seed{'s' * (seeds != 1)}{f', {prompts} prompts' if prompts else ''}"

    @property
    def shown_p(self) -> str:
        if self.p is None:
            return ""
        return "< 0.001" if self.p < 0.001 else number(self.p, 3)


def judged(table: Mapping[K, tuple[Metric, Difference | None]]) -> dict[K, Claim | None]:
    """Every difference of a table with Holm's p over its family. None stays None."""
    families: dict[str, dict[K, float | None]] = {}
    for key, (metric, found) in table.items():
        families.setdefault(metric.key if metric.outcome else "others", {})[key] = found and found.p
    claims: dict[K, Claim | None] = dict.fromkeys(table)
    for family in families.values():
        tested = sum(p is not None for p in family.values())
        for key, p in holm(family).items():
            metric, found = table[key]
            claims[key] = None if found is None else Claim(metric, found, p, tested)
    return claims
