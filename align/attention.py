"""Attention over packed rows: prompts computed once, their completions as branches, nothing padded between them.

A packed row is [prompt | completion 1 | ... | completion K | next prompt | ...]. A completion attends to its prompt and
to itself. Registered with transformers under NAME; the model's own layers call it (`packed_attention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from align.embedded import ModelError

NAME = "align_packed"
# What layers hand on that changes nothing here; dropout is 0 wherever rows are packed.
MEANINGLESS = ("dropout", "position_ids", "use_cache", "output_attentions", "return_dict")
# Families whose layers the tests hold to the plain forward (tests/invariants/families.py); others are padded.
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
# Decoding equals transformers' generate for these too (tests/invariants/test_decoding.py).
DECODED = (*FAMILIES, "mistral", "phi3", "qwen3_moe", "olmo2", "smollm3", "gpt2", "opt", "gpt_neox")


@dataclass(frozen=True)
class Block:
    """Queries that stand side by side in a packed row and see the same prefix: K branches, each seeing itself too.

    A prompt is a block of one branch without a prefix, its completions are a block whose prefix is the prompt.
    """

    prefix: slice  # of the row; empty for a prompt
    rows: slice
    lengths: tuple[int, ...]  # [K], none of them 0
    device: torch.device
    masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def places(self) -> Tensor | None:
        """Where token t of branch k stands among `rows`, [K * T] with T the longest's; 0 behind a branch's end. None
        when that is the order they stand in."""
        if min(self.lengths) == self.longest:
            return None
        starts = torch.tensor((0, *self.lengths[:-1]), device=self.device).cumsum(0).unsqueeze(-1)
        return (starts + torch.arange(self.longest, device=self.device)).masked_fill(~self.real, 0).flatten()

    @cached_property
    def real(self) -> Tensor:
        """[K, T] bool: where there is a token."""
        lengths = torch.tensor(self.lengths, device=self.device).unsqueeze(-1)
        return torch.arange(self.longest, device=self.device) < lengths

    def mask(self, window: int | None) -> Tensor:
        """0 where token t of a branch sees a key of [prefix | itself], -inf elsewhere. [T, P + T] float32"""
        if window not in self.masks:
            P, T = self.prefix.stop - self.prefix.start, self.longest
            past = torch.arange(P, P + T, device=self.device).unsqueeze(-1) - torch.arange(P + T, device=self.device)
            hidden = (past < 0) if window is None else (past < 0) | (past >= window)
            self.masks[window] = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
        return self.masks[window]


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    blocks: tuple[Block, ...],
    sliding_window: int | None = None,
    keep: list[tuple[Tensor, Tensor]] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query [1, H, L, D], key and value [1, G, L, D] -> [1, L, H, D]

    keep: every layer adds its keys and values, [G, L, D] each
    """
    refuse(module, others)
    if keep is not None:
        keep.append((key[0], value[0].clone()))  # values may be a view into the product of queries, keys and values
    out = _Packed.apply(query[0], key[0], value[0], blocks, scaling, sliding_window)
    return out.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)


def refuse(module: Any, others: dict[str, Any]) -> None:
    """Attention of another kind, such as Gemma 2's soft cap or GPT-OSS's sinks, which would be passed over."""
    unknown = [name for name, value in others.items() if name not in MEANINGLESS and value is not None]
    if unknown:
        raise ModelError(f"model.path: {type(module).__name__} asks for {unknown[0]}, which is not supported")


@contextmanager
def attending(decoder: Any, name: str = NAME) -> Iterator[None]:
    """The decoder's layers attend by the function that transformers knows under this name."""
    config = decoder.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def can_pack(decoder: Any) -> bool:
    config = decoder.config
    return config.model_type in FAMILIES and not (decoder.training and config.attention_dropout)


class _Packed(torch.autograd.Function):
    """Softmax attention block by block: a product for what the queries see of the prefix and one for their own branch.

    Scores and softmax are in float32, probabilities in the compute dtype, in which SDPA multiplies them; the backward
    pass makes them again, so that nothing quadratic is kept.
    PyTorch's SDPA has no kernel for such a mask: with a dense one over the row, its backward on a CPU takes several
    times as long (docs/performance.md).

    q [H, L, D], k and v [G, L, D] -> [H, L, D]; inside a block queries are [G, K, H / G, T, D]
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], scale: float, window: int | None
    ) -> Tensor:
        out = torch.empty_like(q)
        for block in blocks:
            P = block.prefix.stop - block.prefix.start
            qs, ks, vs = _queries(q, k, block), _branches(k, block), _branches(v, block)
            probs = _probabilities(qs, ks, k[:, block.prefix], block.mask(window), scale)
            found = (probs[..., P:].flatten(2, 3) @ vs).view(qs.shape)
            if P:
                found += (probs[..., :P].flatten(1, 3) @ v[:, block.prefix]).view(qs.shape)
            _put(out, _heads(found, q), block)
        ctx.save_for_backward(q, k, v)
        ctx.about = blocks, scale, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        blocks, scale, window = ctx.about
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in blocks:
            P = block.prefix.stop - block.prefix.start
            qs, ks, vs = _queries(q, k, block), _branches(k, block), _branches(v, block)
            probs = _probabilities(qs, ks, k[:, block.prefix], block.mask(window), scale)
            qs = qs * scale  # not in place: of a block that is the whole row this may be q itself
            gs = _queries(grad, k, block)
            if block.places is not None:  # behind a branch's end stands a copy of some token: it must not count
                gs = gs.masked_fill(~block.real.view(1, len(block.lengths), 1, -1, 1), 0)
            dp = (gs.flatten(2, 3) @ vs.mT).view(*qs.shape[:-1], -1)
            if P:
                dp = torch.cat([(gs.flatten(1, 3) @ v[:, block.prefix].mT).view(*qs.shape[:-1], P), dp], -1)
            ds = torch._softmax_backward_data(dp, probs, -1, probs.dtype)
            own, p_own = ds[..., P:].flatten(2, 3), probs[..., P:].flatten(2, 3)
            found = (own @ ks).view(qs.shape)
            # written, not added: a prompt's own block comes before that of its completions, which adds to it
            _put(dk, (own.mT @ qs.flatten(2, 3)).flatten(1, 2), block)
            _put(dv, (p_own.mT @ gs.flatten(2, 3)).flatten(1, 2), block)
            if P:
                seen, p_seen = ds[..., :P].flatten(1, 3), probs[..., :P].flatten(1, 3)
                found += (seen @ k[:, block.prefix]).view(qs.shape)
                dk[:, block.prefix] += seen.mT @ qs.flatten(1, 3)
                dv[:, block.prefix] += p_seen.mT @ gs.flatten(1, 3)
            _put(dq, _heads(found.mul_(scale), q), block)
        return dq, dk, dv, None, None, None


def _probabilities(qs: Tensor, ks: Tensor, prefix: Tensor, mask: Tensor, scale: float) -> Tensor:
    """qs [G, K, r, T, D], ks [G, K, T, D], keys of the prefix [G, P, D], mask [T, P + T] -> [G, K, r, T, P + T]"""
    wide = qs.to(torch.promote_types(qs.dtype, torch.float32))
    scores = (wide.flatten(2, 3) @ ks.to(wide.dtype).mT).view(*qs.shape[:-1], -1)
    if prefix.shape[1]:
        seen = (wide.flatten(1, 3) @ prefix.to(wide.dtype).mT).view(*qs.shape[:-1], -1)
        scores = torch.cat([seen, scores], -1)
    return scores.mul_(scale).add_(mask).softmax(-1).to(qs.dtype)


def _branches(x: Tensor, block: Block) -> Tensor:
    """[h, L, D] -> [h, K, T, D]"""
    rows = x[:, block.rows] if block.places is None else x[:, block.rows].index_select(1, block.places)
    return rows.reshape(len(x), len(block.lengths), block.longest, -1)


def _queries(x: Tensor, k: Tensor, block: Block) -> Tensor:
    """[H, L, D] -> [G, K, H / G, T, D]: heads that share a key side by side"""
    return _branches(x, block).unflatten(0, (len(k), -1)).transpose(1, 2).contiguous()


def _heads(x: Tensor, q: Tensor) -> Tensor:
    """[G, K, H / G, T, D] -> [H, K * T, D]"""
    return x.transpose(1, 2).reshape(len(q), -1, q.shape[-1])


def _put(target: Tensor, x: Tensor, block: Block) -> None:
    """Write [h, K * T, D] where the block stands in [h, L, D]."""
    target[:, block.rows] = x if block.places is None else x[:, block.real.flatten()]
