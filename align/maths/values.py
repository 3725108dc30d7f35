"""What a critic is trained on, and how good it is."""

from __future__ import annotations

import torch
from torch import Tensor

from align.maths.masked import masked_mean, masked_var


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, pessimistic about moving far from the old one (PPO's value clipping).

        loss = max((V - R)^2, (V_c - R)^2) / 2,   V_c = V_old + clip(V - V_old, -c, c)

    all [B, T] -> loss [B, T], where the bound acted (bool)
    """
    plain = (values - returns).square() / 2
    if clip is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    bounded = (values.clamp(old_values - clip, old_values + clip) - returns).square() / 2
    return torch.maximum(plain, bounded), bounded > plain


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the positions of mask: 1 is perfect, 0 no better than a constant, < 0 worse.

    0 where the returns do not vary. values, returns [B, T], mask [B, T] bool -> scalar
    """
    spread = masked_var(returns, mask)
    scale = torch.maximum(masked_mean(returns.square(), mask), masked_mean(values.square(), mask))
    if spread <= 1e-10 * scale:  # a standard deviation of 1e-5 of the numbers themselves: float32 rounding
        return torch.zeros_like(spread)
    return 1 - masked_var(returns - values, mask) / spread
