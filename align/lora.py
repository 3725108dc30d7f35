"""LoRA's linear layer as one step of autograd, in the dtype of the base; and starts that PEFT has no name for.

PEFT's own casts the input to the adapter's float32 and keeps that copy for the backward pass, once for every layer that
reads it (docs/performance.md). Here the products are in the base's dtype; weights, gradients
and optimizer stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Name -> what is set to 0 after PEFT's layers have drawn A and B alike, uniform within 1 / sqrt(inputs of the matrix).
# b_random mirrors the default (Init[B] of arXiv:2406.08447). The other two are controls, and only for SFT: `zeros` has
# no gradient and never moves, `both_random` does not start from the base.
STARTS: dict[str, tuple[str, ...]] = {"b_random": ("lora_A",), "zeros": ("lora_A", "lora_B"), "both_random": ()}


class FusedLinear(Linear):
    """peft.tuners.lora.Linear; what is not plain LoRA (DoRA, dropout, 4 bits, merged, off) takes PEFT's path."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.is_plain or args or kwargs:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base, scale = self.base_layer, self.scaling[name]
        return _Lora.apply(x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, scale)

    @property
    def is_plain(self) -> bool:
        names = self.active_adapters
        return (
            len(names) == 1
            and not (self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[names[0]], nn.Identity)
            and self.lora_B[names[0]].bias is None
            and type(self.base_layer) is nn.Linear  # not one in 4 bits, which has no weight to hand out
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
        )


def use_fused(config: LoraConfig) -> LoraConfig:
    """PEFT builds FusedLinear for every nn.Linear that it adapts; nothing of it is saved with the adapter."""
    config._register_custom_module({nn.Linear: FusedLinear})
    return config


def set_start(model: nn.Module, init: str) -> None:
    """Zeros where the init wants them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(f".{matrix}." in name for matrix in STARTS.get(init, ())):
                parameter.zero_()


class _Lora(torch.autograd.Function):
    """y = x W' + b + s (x A') B'     x [..., in], A [r, in], B [out, r]

    dx = g W + s (g B) A,   dA = s (g B)' x,   dB = s g' (x A')
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ A.to(x.dtype).mT
        y = linear(flat, weight, bias).addmm_(low, B.to(x.dtype).mT, alpha=scale)
        ctx.save_for_backward(flat, low, weight, A, B)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, first, weight, A, B = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        a, b = A.to(g.dtype), B.to(g.dtype)
        low = (g @ b).mul_(ctx.scale)
        dA = (low.mT @ flat).to(A.dtype)
        dB = (g.mT @ first).to(B.dtype).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (g @ weight).addmm_(low, a).view(ctx.shape)
        return dx, None, None, dA, dB, None
