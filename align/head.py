"""Token logprobs through an LM head, without keeping a logit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class TokenLogprobs(torch.autograd.Function):
    """Logprobs and entropies of `align.maths.logprobs.token_logprobs` behind a frozen head.

        z = cap tanh(h W' / cap) / tau,   log p = z[y] - logsumexp(z)
        d log p / d h = (onehot(y) - p) (1 - tanh^2) W / tau

    The derivative is a vector of the hidden size and does not depend on the loss, so it is computed while p is at hand,
    and the backward pass is a multiplication: two products with the head instead of the three of recomputing logits.

    hidden [N, H], head [V, H], targets [N] -> logprobs [N], entropies [N] float32; entropies carry no gradient
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, cap: float | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        logprobs = torch.empty(
            len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        entropies = torch.empty_like(logprobs)
        slopes = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            z = linear(hidden[rows], weight).to(logprobs.dtype)
            flat = None
            if cap is not None:
                flat = z.div_(cap).tanh_()  # the slope of the cap is 1 - tanh^2
                z = flat * cap
            if temperature != 1:
                z = z.div_(temperature)
            y = targets[rows].unsqueeze(-1)
            p = z.softmax(-1)
            log_partition = z.amax(-1) - p.amax(-1).log()
            logprobs[rows] = z.gather(-1, y).squeeze(-1) - log_partition
            entropies[rows] = log_partition - torch.linalg.vecdot(p, z)
            if slopes is not None:
                p.neg_().scatter_add_(-1, y, torch.ones_like(y, dtype=p.dtype))
                if flat is not None:
                    p.mul_(1 - flat.square())
                slopes[rows] = p.to(hidden.dtype) @ weight
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * (grad / ctx.temperature).unsqueeze(-1)).to(slopes.dtype), None, None, None, None, None


def is_plain(head: Any) -> bool:
    """A frozen matrix, so that only hidden states need a gradient."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad
