"""Best of n of N samples: how far it is from the policy, and what it is worth, without taking blocks of n."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # calculators (align/memory) answer without torch
    from torch import Tensor


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


def expected_best(proxy: Tensor, gold: Tensor, n: int) -> Tensor:
    """Unbiased estimate, from N samples of each prompt, of the gold of the best of n by the proxy (arXiv:2112.09332).

        E_n = sum_i w_i gold_(i),   (i) in ascending order of the proxy, w as in `weights`

    The mean over all subsets of n of the gold of their best; where proxies are equal, one of them is taken by chance.
    n <= N / 4 keeps the variance down: n = N is a single pick. proxy, gold [..., N] -> [...] float64
    """
    import torch

    N = proxy.shape[-1]
    assert proxy.shape == gold.shape, (proxy.shape, gold.shape)
    ascending, order = proxy.double().sort(-1)
    below = torch.searchsorted(ascending, ascending, side="left")
    upto = torch.searchsorted(ascending, ascending, side="right")
    sums = torch.tensor([0.0, *weights(n, N)], dtype=torch.double, device=proxy.device).cumsum(0)
    shares = (sums[upto] - sums[below]) / (upto - below)  # over equals
    return (shares * gold.double().gather(-1, order)).sum(-1)


def pair_weights(n: int, samples: int) -> list[list[float]]:
    """Probability that the bests of two disjoint groups of n drawn from `samples` rewards are these two.

        w_ij = 2 C(j - 1, n - 1) C(i - n - 1, n - 1) / (C(N, n) C(N - n, n)),   i > j, ascending

    The group of j takes n - 1 of the j - 1 below it, that of i n - 1 of the i - 1 below it less those n.
    """
    assert n >= 1 and 2 * n <= samples, (n, samples)
    ways = math.comb(samples, n) * math.comb(samples - n, n)
    return [
        [2 * math.comb(j, n - 1) * math.comb(i - n, n - 1) / ways if j < i and i >= n else 0.0 for j in range(samples)]
        for i in range(samples)
    ]


def best_pair_accuracy(chooser: Tensor, judge: Tensor, gold: Tensor, n: int) -> Tensor:
    """Unbiased estimate of how often `judge` ranks as gold does two answers, each the best of n by `chooser`.

    The mean over all pairs of disjoint groups of n; where judge or gold are equal it counts half. Of equal choosers the
    last one given is taken for the best, so they should be of equal answers. All [..., N] -> [...] float64
    """
    import torch

    order = chooser.argsort(dim=-1, stable=True)
    mine, true = (x.double().gather(-1, order) for x in (judge, gold))
    agreed = (mine.unsqueeze(-1) - mine.unsqueeze(-2)).sign() * (true.unsqueeze(-1) - true.unsqueeze(-2)).sign()
    weight = torch.tensor(pair_weights(n, chooser.shape[-1]), dtype=torch.double, device=chooser.device)
    return ((1 + agreed) / 2 * weight).sum((-1, -2))
