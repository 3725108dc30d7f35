"""Best of n of N samples: how far it is from the policy, and what it is worth, without taking blocks of n."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, nats per sequence: the most that the best of n is from what it was chosen from."""
    return math.log(n) - (n - 1) / n


def expected_best(proxy: Tensor, gold: Tensor, n: int) -> Tensor:
    """Unbiased estimate, from N samples of each prompt, of the gold of the best of n by the proxy (arXiv:2112.09332).

        E_n = sum_i C(i - 1, n - 1) / C(N, n) gold_(i),   (i) in ascending order of the proxy, i = 1..N

    The mean over all subsets of n of the gold of their best; where proxies are equal, one of them is taken by chance.
    n <= N / 4 keeps the variance down: n = N is a single pick. proxy, gold [..., N] -> [...] float64
    """
    N = proxy.shape[-1]
    assert proxy.shape == gold.shape and 1 <= n <= N, (proxy.shape, gold.shape, n)
    ascending, order = proxy.double().sort(-1)
    below = torch.searchsorted(ascending, ascending, side="left")
    upto = torch.searchsorted(ascending, ascending, side="right")
    i = torch.arange(N, 0, -1, dtype=torch.double, device=proxy.device)
    shares = torch.cat([i[:1] / i[:1], ((i - n) / i).clamp(min=0).cumprod(0)]).flip(0)  # C(i, n) / C(N, n), i = 0..N
    weights = (shares[upto] - shares[below]) / (upto - below)  # C(i, n) - C(i - 1, n) = C(i - 1, n - 1), over equals
    return (weights * gold.double().gather(-1, order)).sum(-1)
