"""What a token counts for when another program sampled it than the one that trains on it."""

from __future__ import annotations

import torch
from torch import Tensor

from align.maths.policy import log_ratio


def importance_weights(
    logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: str, bound: str, cap: float
) -> tuple[Tensor, Tensor]:
    """Weights that turn an expectation under the sampler into one under the policy, bounded.

        w = p / s      token by token, or of a completion as a whole (`level` as in `log_ratio`);
                       p the policy as the trainer computes it before the update, s as the sampler did
        truncated:     min(w, cap)                      (TIS, Yao et al. 2025, fengyao.notion.site/off-policy-rl)
        masked:        w where 1/cap <= w <= cap, else 0    (IcePop, arXiv:2510.18855, section 3)

    Unbounded they would be unbiased; a bound trades bias for variance. They are numbers, not differentiated.
    logprobs, sampler_logprobs [B, T], mask [B, T] bool -> weights [B, T], 1 where mask is False, and where the bound
    acted [B, T] bool
    """
    assert cap > 1, cap
    log_weights = log_ratio(logprobs, sampler_logprobs, mask, level).expand(mask.shape).detach()
    weights = log_weights.exp()
    if bound == "truncated":
        acted = weights > cap
        bounded = weights.clamp(max=cap)
    else:
        assert bound == "masked", bound
        acted = (weights > cap) | (weights < 1 / cap)
        bounded = torch.where(acted, torch.zeros_like(weights), weights)
    return torch.where(mask, bounded, torch.ones_like(bounded)), acted & mask
