"""Two layers of Llama's kind, each as one step of autograd: RMSNorm when frozen or not, and the product in its MLP.

The model's own norm keeps two float32 copies of its input for the backward pass and its MLP the activated gate: a third
of what a training pass of SmolLM2-135M held (docs/performance.md). These keep their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu

NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
MLPS = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP")


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    def __init__(self, mlp: Any):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        product = _SwiGLU.apply(gate, up)
        if not product.requires_grad:
            return self.down_proj(product)
        with saved_tensors_hooks(*_made_again(product, gate.detach(), up.detach())):
            return self.down_proj(product)


def _made_again(product: Tensor, gate: Tensor, up: Tensor) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """Hooks that keep the shape of `product` in its place for the backward pass: gate and up are kept anyway."""
    place, size = product.data_ptr(), product.numel()

    def pack(kept: Tensor) -> Tensor | torch.Size:
        return kept.shape if kept.data_ptr() == place and kept.numel() == size else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return silu(gate).mul_(up).view(kept) if isinstance(kept, torch.Size) else kept

    return pack, unpack


def use_fused(model: Any) -> None:
    """Put ours in the place of the model's; the weights are the same parameters under the same names."""
    gated = getattr(model.config.get_text_config(), "hidden_act", None) == "silu"
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in NORMS:
                setattr(parent, name, RMSNorm(child.weight, child.variance_epsilon))
            elif type(child).__name__ in MLPS and gated:
                setattr(parent, name, SwiGLU(child))


class _RMSNorm(torch.autograd.Function):
    """y = w x r,   r = 1 / sqrt(mean(x^2) + eps);   arXiv:1910.07467, eq. 4; rounded to the dtype of x before w.

    dx = r (w g - x r mean(w g x r)),   dw = sum of g x r
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        r = x.to(wide).square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # to the last bit as transformers
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


class _SwiGLU(torch.autograd.Function):
    """y = silu(gate) up   (arXiv:2002.05202, without its linear maps)"""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)
