"""RMSNorm as one step of autograd, for the frozen norms of models that have Llama's.

The model's own keeps two float32 copies of its input for the backward pass, a quarter of what a training pass of
SmolLM2-135M held (docs/performance.md). This one keeps the input and a number per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SAME_FORMULA = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)


def use_fused(model: nn.Module) -> None:
    """Put ours in the place of the model's norms; the weights are the same parameters under the same names."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in SAME_FORMULA:
                setattr(parent, name, RMSNorm(child.weight, child.variance_epsilon))


class _RMSNorm(torch.autograd.Function):
    """y = w x r,   r = 1 / sqrt(mean(x^2) + eps);   arXiv:1910.07467, eq. 4. Rounded to the dtype of x before w, as there.

    dx = r (w g - x r mean(w g x r)),   dw = sum of g x r
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1])
        r = squares.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).to(x.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        direction = x * r
        dw = (grad * direction.to(grad.dtype)).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dw, None
        g = (grad * weight).to(r.dtype)
        along = torch.linalg.vecdot(g, direction).div_(x.shape[-1]).unsqueeze(-1)
        return g.addcmul_(direction, along, value=-1).mul_(r).to(x.dtype), dw, None
