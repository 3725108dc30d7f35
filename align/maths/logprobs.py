"""From logits to what a policy says about its own tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of the distribution it was drawn from, in float32 at least.

        log p_t = z_t[y_t] / tau - logsumexp(z_t / tau)
        H_t     = logsumexp(z_t / tau) - sum_v p_t[v] z_t[v] / tau

    Both are of the distribution at temperature tau, the one that is sampled from (docs/algorithms.md, P23 and P24).
    logits [N, V], targets [N] int64 -> logprobs [N], entropy [N], both in nats
    """
    assert logits.shape[:-1] == targets.shape, (logits.shape, targets.shape)
    assert temperature > 0, temperature
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_partition = z.logsumexp(-1)
    logprobs = z.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_partition
    with torch.no_grad():  # reported, never optimised: an entropy bonus would be an algorithm of its own
        probs = (z - log_partition.unsqueeze(-1)).exp()
        entropy = log_partition - (probs * z).sum(-1)
    return logprobs, entropy


def kept_logprobs(logits: Tensor, kept: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, of what a cut leaves: `kept` are the logits with -inf where something is cut off.

        log p_t = z_t[y_t] - logsumexp(kept_t)
        H_t     = - sum over what is kept of p_t[v] log p_t[v]

    A target was sampled, so the cut had kept it. By the rounding of another forward it may stand just outside, where
    log p would be -inf, and with it every mean: its logit counts as if it were inside.
    logits [N, V], kept [N, V], targets [N] int64 -> logprobs [N], entropy [N], both in nats
    """
    assert logits.shape == kept.shape, (logits.shape, kept.shape)
    logprobs = logits.float().gather(-1, targets.unsqueeze(-1)).squeeze(-1) - kept.float().logsumexp(-1)
    return logprobs, torch.special.entr(kept.softmax(-1, dtype=torch.float32)).sum(-1)


def exact_kl(logits: Tensor, reference_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL from policy to reference over the full vocabulary at each position, in nats.

        KL_t = sum_v p_t[v] (log p_t[v] - log q_t[v]),    p = softmax(logits / tau), q = softmax(reference_logits)

    What is cut off from the policy (logit -inf) has p = 0 and adds 0.
    logits [N, V], reference_logits [N, V] -> [N] float32, >= 0 up to rounding and never clamped
    """
    assert logits.shape == reference_logits.shape, (logits.shape, reference_logits.shape)
    log_p = (logits.float() / temperature).log_softmax(-1)
    log_q = reference_logits.float().log_softmax(-1)
    difference = (log_p - log_q).masked_fill_(log_p == -math.inf, 0.0)  # 0 times -inf is NaN
    return (log_p.exp() * difference).sum(-1)
