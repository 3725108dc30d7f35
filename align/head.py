"""Token logprobs through an LM head, without keeping a logit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# A product with the head takes WIDE / (bytes of a number) chunks at once, 256 positions in bfloat16: with 64 a CPU
# reaches half of its rate (docs/performance.md)
WIDE = 8


class TokenLogprobs(torch.autograd.Function):
    """Logprobs and entropies of `align.maths.logprobs.token_logprobs` behind a frozen head.

        z = cap tanh(h W' / cap) / tau,   log p = z[y] - logsumexp(z)
        d log p / d h = (onehot(y) - p) (1 - tanh^2) W / tau

    The derivative is a vector of the hidden size and does not depend on the loss, so it is computed while p is at hand,
    and the backward pass is a multiplication: two products with the head instead of the three of recomputing logits.

    hidden [N, H], head [V, H], targets [N] -> logprobs [N], entropies [N] float32; entropies carry no gradient
    chunk: positions whose logits are held in float32; several times as many are multiplied with the head at once
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
        together = chunk * max(WIDE // hidden.element_size(), 1)
        for start in range(0, len(hidden), together):
            wide = slice(start, start + together)
            logits = linear(hidden[wide], weight)
            parts = zip(*(x[wide].split(chunk) for x in (logprobs, entropies, targets)), strict=True)
            for raw, (logprob, entropy, y) in zip(logits.split(chunk), parts, strict=True):
                _score(raw, logprob, entropy, y.unsqueeze(-1), (temperature, cap, wanted))
            if slopes is not None:
                slopes[wide] = logits @ weight
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


def _score(logits: Tensor, logprob: Tensor, entropy: Tensor, y: Tensor, how: tuple[float, float | None, bool]) -> None:
    """Of a chunk: fills logprob and entropy [n], and writes the slope over the logits [n, V] where it is wanted."""
    temperature, cap, wanted = how
    z = logits.to(logprob.dtype)
    flat = None
    if cap is not None:
        flat = (z / cap).tanh_()  # the slope of the cap is 1 - tanh^2
        z = flat * cap
    if temperature != 1:
        z = z / temperature
    p = z.softmax(-1)
    log_partition = z.amax(-1) - p.amax(-1).log()
    logprob.copy_(z.gather(-1, y).squeeze(-1) - log_partition)
    entropy.copy_(log_partition - torch.linalg.vecdot(p, z))
    if wanted:
        p.neg_().scatter_add_(-1, y, torch.ones_like(y, dtype=p.dtype))
        if flat is not None:
            p.mul_(1 - flat.square())
        logits.copy_(p)


def is_plain(head: Any) -> bool:
    """A frozen matrix, so that only hidden states need a gradient."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad
