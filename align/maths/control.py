"""Two things that remember: the adaptive KL coefficient, and the running scale of a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ERROR_BOUND = 0.2  # arXiv:1909.08593, section 2.2


def adapted_coef(coef: float, kl: float, target: float, completions: int, horizon: float) -> tuple[float, bool]:
    """The KL coefficient after a rollout (Ziegler et al., arXiv:1909.08593, section 2.2).

        coef <- coef (1 + clip(kl / target - 1, -0.2, 0.2) completions / horizon)

    kl and target in the same unit, here nats per sequence. -> new coefficient, whether the bound acted
    """
    assert target > 0 and horizon >= completions, (target, horizon, completions)
    assert math.isfinite(kl), kl
    error = kl / target - 1
    bounded = max(-ERROR_BOUND, min(ERROR_BOUND, error))
    return coef * (1 + bounded * completions / horizon), bounded != error


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of all numbers seen so far (Chan et al. 1979, eq. 2.1)."""

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def with_(self, numbers: Sequence[float]) -> Moments:
        """These numbers seen too."""
        if not numbers:
            return self
        n = len(numbers)
        mean = numbers[0] + sum(x - numbers[0] for x in numbers) / n
        deviations = sum((x - mean) ** 2 for x in numbers)
        total, gap = self.count + n, mean - self.mean
        between = gap**2 * self.count * n / total
        return Moments(total, self.mean + gap * (n / total), self.deviations + deviations + between)

    @property
    def std(self) -> float:
        """With n in its denominator; 1 while nothing varies, so that dividing by it changes nothing."""
        variance = self.deviations / self.count if self.count else 0.0
        return variance**0.5 if variance > 0 else 1.0
