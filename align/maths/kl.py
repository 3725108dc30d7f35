"""Estimators of KL(policy || reference) from samples of the policy (Schulman 2020, joschu.net/blog/kl-approx).

With r = q(y) / p(y) for y ~ p, so that log r = reference_logprob - logprob:

    k1 = -log r               unbiased, signed, high variance
    k2 = (log r)^2 / 2        biased, small when p is near q; as a loss its gradient is that of KL(p || q)
    k3 = (r - 1) - log r      unbiased, >= 0; as a loss its gradient is that of KL(q || p)

None is clamped: a clamp hides the explosion that the number is there to show.
"""

from __future__ import annotations

from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log p - log q at each position. [..., T], [..., T] -> [..., T], nats"""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2 at each position. [..., T], [..., T] -> [..., T], nats"""
    return (logprobs - reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(q/p - 1) - log(q/p) at each position, by expm1 to be exact near 0. [..., T], [..., T] -> [..., T], nats"""
    log_ratio = reference_logprobs - logprobs
    return log_ratio.expm1() - log_ratio


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
