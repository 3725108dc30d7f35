"""What an optimizer step differentiates: a named point on the axes as a loss, and a critic's error. Tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from align.maths import kl as kl_estimators
from align.maths.masked import masked_sum
from align.maths.policy import Denominators, aggregate, clipped_surrogate, log_ratio
from align.maths.values import value_losses
from align.schema import Critic, OnPolicy


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    algo: OnPolicy,
    kl_coef: float | None,
    denominators: Denominators,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Everything [B, T]; -> this micro-batch's share of the step's loss, of what is logged, and the log-ratios [B, T].

        loss = aggregate( surrogate(ratio, A) + [kl.where = loss] coef kl(log p, log p_ref) )

    Without old_logprobs the policy is the one that sampled: the ratio is 1 and only its gradient is left.
    (Eight tensors of one batch: a record of them would be built and taken apart in the same three lines.)
    """
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    log_ratios = log_ratio(logprobs, old, mask, algo.ratio.level)
    ratio = algo.ratio
    losses, clipped, dual = clipped_surrogate(
        log_ratios, advantages if ratio.level == "token" else advantages[:, :1], ratio.clip_low, ratio.clip_high,
        ratio.clip_dual,
    )  # fmt: skip
    loss = aggregate(losses, mask, algo.aggregate, denominators)
    stats = {"loss/policy": loss.detach()}
    if algo.kl.where == "loss":
        assert reference_logprobs is not None and algo.kl.estimator and kl_coef is not None
        divergence = kl_estimators.ESTIMATORS[algo.kl.estimator](logprobs, reference_logprobs)
        kl_loss = kl_coef * aggregate(divergence, mask, algo.aggregate, denominators)
        loss = loss + kl_loss
        stats["loss/kl"] = kl_loss.detach()
    stats["loss"] = loss.detach()
    with torch.no_grad():
        stats["ratio/mean"] = _share(log_ratios.exp(), mask, denominators)
        stats["ratio/clipped"] = _share(clipped, mask, denominators)
        if ratio.clip_dual is not None:
            stats["ratio/clipped_dual"] = _share(dual, mask, denominators)
        if old_logprobs is not None:
            stats |= _divergences("kl_old", old, logprobs, mask, denominators)
        if reference_logprobs is not None:
            stats |= _divergences("kl", logprobs, reference_logprobs, mask, denominators)
    return loss, stats, log_ratios.detach().expand(mask.shape)


def critic_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, critic: Critic, denominators: Denominators
) -> tuple[Tensor, dict[str, Tensor]]:
    """coef x the mean over the step's tokens of half the squared error of the values; everything [B, T]."""
    losses, clipped = value_losses(values, old_values, returns, critic.clip)
    loss = masked_sum(losses, mask) / max(denominators.tokens, 1)
    stats = {"critic/loss": loss.detach()}
    if critic.clip is not None:
        stats["critic/clipped"] = _share(clipped, mask, denominators)
    return critic.coef * loss, stats


def _divergences(name: str, p: Tensor, q: Tensor, mask: Tensor, denominators: Denominators) -> dict[str, Tensor]:
    """k1 in nats per sequence and k3 in nats per token, as everywhere (docs/metrics.md)."""
    return {
        f"{name}/k1": masked_sum(kl_estimators.k1(p, q), mask) / max(denominators.sequences, 1),
        f"{name}/k3": _share(kl_estimators.k3(p, q), mask, denominators),
    }


def _share(values: Tensor, mask: Tensor, denominators: Denominators) -> Tensor:
    """A mean over the step's tokens, this micro-batch's part of it."""
    return masked_sum(values.expand(mask.shape).float(), mask) / max(denominators.tokens, 1)
