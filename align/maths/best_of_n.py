"""Best of n: how far it is from the policy it samples from, and what it would score, from more samples than n."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, nats per sequence: the most that the best of n differs from one sample, and what it differs
    when no two answers are the same or have the same reward (arXiv:2401.01879, theorem 1)."""
    return math.log(n) - (n - 1) / n


def weights(n: int, samples: int) -> list[float]:
    """Probability that the i-th lowest of `samples` rewards is the highest of n drawn from them without replacement.

    w_i = C(i - 1, n - 1) / C(N, n),   i = 1..N
    """
    assert 1 <= n <= samples, (n, samples)
    return [math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)]


def expected_best(values: Sequence[float], n: int) -> float:
    """What the best of n is worth, without bias: `values` in the order of the reward that chooses, lowest first."""
    return sum(w * value for w, value in zip(weights(n, len(values)), values, strict=True))
