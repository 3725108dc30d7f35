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
