"""Reductions that never see a padded position."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum over positions where mask is True. A padded position adds exactly 0, whatever stands there (NaN included).

    values [..., T], mask [..., T] bool -> [...] over `dim`, or a scalar
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    kept = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over positions where mask is True; 0 where a row has none.

    values [..., T], mask [..., T] bool -> [...] over `dim`, or a scalar
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance over all positions where mask is True, 0 where there is none. [..., T] -> scalar"""
    centered = _centered(values, mask)
    return masked_mean(centered.square(), mask)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Values in units of their spread over the whole batch; 0 where mask is False.

        (x - mean) / sqrt(var + eps)
        (x - mean) / sqrt(var + eps) + mean      with shift_mean=False: the level of a reward is kept, its scale is not

    Variance with n in its denominator, as lm-human-preferences (docs/algorithms.md, P11 and P17).
    values [B, T], mask [B, T] bool -> [B, T]
    """
    centered = _centered(values, mask)
    whitened = centered * (masked_var(values, mask) + eps).rsqrt()
    if not shift_mean:
        whitened = whitened + masked_mean(values, mask)
    return torch.where(mask, whitened, torch.zeros_like(whitened))


def _centered(values: Tensor, mask: Tensor) -> Tensor:
    """Values less their mean, by way of the largest: equal values cancel exactly, whatever their mean rounds to."""
    first = values.masked_fill(~mask, -torch.inf).amax().nan_to_num(neginf=0.0)
    relative = values - first
    return relative - masked_mean(relative, mask)
