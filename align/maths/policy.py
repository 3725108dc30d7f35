"""The policy-gradient loss: a ratio, a clipped surrogate, and a sum whose denominator is known before the pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from align.maths.masked import masked_mean, masked_sum


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: str) -> Tensor:
    """Log of the importance ratio between the policy now and when it sampled.

        token:          l_t = log p_t - log p_old_t
        sequence_mean:  mean_t l_t, the same for every token (GSPO, arXiv:2507.18071, eq. 7)
        sequence_sum:   sum_t l_t, the whole answer as one action (RLOO, arXiv:2402.14740, section 2.2)

    logprobs, old_logprobs [B, T], mask [B, T] bool -> [B, T] (token) or [B, 1]
    """
    difference = logprobs - old_logprobs
    if level == "token":
        return difference
    reduce = {"sequence_mean": masked_mean, "sequence_sum": masked_sum}[level]
    return reduce(difference, mask, -1).unsqueeze(-1)


def clipped_surrogate(
    log_ratios: Tensor,
    advantages: Tensor,
    clip_low: float | None,
    clip_high: float | None,
    clip_dual: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's pessimistic objective as a loss (arXiv:1707.06347, eq. 7), with separate bounds (arXiv:2503.14476).

        loss = -min(r A, clip(r, 1 - low, 1 + high) A),   r = exp(log_ratio)
        A < 0 and clip_dual = c:  loss = min(loss, -c A)      (dual clip, arXiv:1912.09729, eq. 5)

    At r = 1 the gradient is that of REINFORCE, -A grad log p. None for both bounds leaves r unclipped.
    log_ratios, advantages [B, T] or [B, 1], broadcast
    -> loss [B, T] or [B, 1], and where each of the two bounds acted (bool): clipped, dual
    """
    ratio = log_ratios.exp()
    plain = ratio * advantages
    nowhere = torch.zeros_like(plain, dtype=torch.bool)
    if clip_low is None or clip_high is None:
        return -plain, nowhere, nowhere
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = -torch.minimum(plain, bounded)
    clipped = bounded < plain
    if clip_dual is None:
        return losses, clipped, nowhere
    ceiling = torch.where(advantages < 0, -clip_dual * advantages, torch.full_like(plain, torch.inf))
    return torch.minimum(losses, ceiling), clipped, losses > ceiling


@dataclass(frozen=True)
class Denominators:
    """What a whole optimizer step is divided by, so that micro-batches add up to one big batch.

    `tokens` and `sequences` count everything in the step that enters the loss, over all micro-batches and processes;
    `budget` is the constant of Dr. GRPO, the generation limit in tokens.
    """

    tokens: int
    sequences: int
    budget: int


def aggregate(losses: Tensor, mask: Tensor, how: str, denominators: Denominators) -> Tensor:
    """This micro-batch's share of the step's loss.

        token_mean:     sum of all tokens / tokens in the step            (DAPO, arXiv:2503.14476)
        sequence_mean:  sum_i mean_t loss_it / sequences in the step      (GRPO, arXiv:2402.03300)
        sequence_sum:   sum_i sum_t loss_it / sequences in the step
        constant:       sum of all tokens / (sequences x budget)          (Dr. GRPO, arXiv:2503.20783)

    losses [B, T] or [B, 1] (one per sequence), mask [B, T] bool -> scalar
    """
    losses = losses.expand(mask.shape)
    if how == "token_mean":
        return masked_sum(losses, mask) / max(denominators.tokens, 1)
    if how == "sequence_mean":
        return masked_mean(losses, mask, -1).sum() / max(denominators.sequences, 1)
    per_sequence = masked_sum(losses, mask) / max(denominators.sequences, 1)
    assert how in ("sequence_sum", "constant"), how
    return per_sequence / denominators.budget if how == "constant" else per_sequence
