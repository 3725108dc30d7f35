"""Decoding token by token: one cache for each prompt, shared by its completions, and one for each completion.

Rows that have ended leave the batch, and waiting prompts take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from align.attention import refuse

NAME = "align_decoding"
CHUNK = 32  # tokens that caches grow by

Pair = tuple[Tensor, Tensor]  # keys and values


class Cache:
    """Keys and values of completions while they are decoded, and of the prompts that they answer.

    Rows stand side by side, those of one prompt together. Their caches are in slots [prompts, most rows of a prompt],
    so that all queries about a prompt are one product; a row's own tokens stand from 0 on, prompts are padded on the
    right to the longest.
    """

    def __init__(self, steps: int, device: torch.device):
        self.steps, self.device = steps, device
        self.prompts: list[Pair] = []  # of each layer, [G, heads, P, D]
        self.own: list[Pair] = []  # of each layer, [G, heads, K, W, D]
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        self.prompt_lengths = nothing  # [G]
        self.group = nothing  # [R] the prompt that each row answers
        self.filled = nothing  # [R] tokens of each row in its own cache
        self.slot = nothing  # [R]
        self.together: int | None = 0  # `filled` when it is the same for all rows
        self.masks: dict[int | None, Tensor | None] = {}
        self.rotation: tuple[Any, Pair] | None = None

    def admit(self, keys: list[Pair], spans: Sequence[slice], rows_of: Sequence[int]) -> None:
        """Add prompts, and rows_of[i] rows that answer the i-th. Of each layer keys and values [heads, N, D], in which
        the prompts stand at `spans`."""
        first, before, count = len(self.prompt_lengths), len(self.group), sum(rows_of)
        lengths = torch.tensor([span.stop - span.start for span in spans], device=self.device)
        self.prompt_lengths = torch.cat([self.prompt_lengths, lengths])
        longest = int(self.prompt_lengths.max())
        if not self.own:
            heads, _, D = keys[0][0].shape
            none = torch.zeros(0, heads, 0, D, dtype=self._dtype(keys[0][0].dtype), device=self.device)
            self.own, self.prompts = [(none.unsqueeze(2),) * 2] * len(keys), [(none, none)] * len(keys)
        self.prompts = [
            (_joined(k, new_k, spans, longest), _joined(v, new_v, spans, longest))
            for (k, v), (new_k, new_v) in zip(self.prompts, keys, strict=True)
        ]
        groups = torch.arange(first, first + len(rows_of), device=self.device)
        self.group = torch.cat([self.group, groups.repeat_interleave(torch.tensor(rows_of, device=self.device))])
        self.filled = torch.cat([self.filled, self.filled.new_zeros(count)])
        self.together = None if before else 0
        self._arrange(torch.cat([self.slot, self.slot.new_zeros(count)]))

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on, and the prompts that they answer."""
        groups, self.group = self.group[rows].unique(return_inverse=True)
        if len(groups) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[groups]
            longest = int(self.prompt_lengths.max()) if len(groups) else 0
            self.prompts = [(k[groups, :, :longest], v[groups, :, :longest]) for k, v in self.prompts]
        self.filled = self.filled[rows]
        self._arrange(self.slot[rows])

    def _arrange(self, slots: Tensor) -> None:
        """Give every row a slot and move there what it has in its old one; make room for CHUNK more tokens."""
        old, counts = self.own[0][0].shape[2], self.group.bincount(minlength=len(self.prompt_lengths))
        self.K = int(counts.max()) if len(counts) else 0
        self.even = bool((counts == self.K).all())
        rows = torch.arange(len(self.group), device=self.device)
        self.at = self.group, rows - (counts.cumsum(0) - counts)[self.group]  # [R] twice
        self.slot = self.at[0] * self.K + self.at[1]
        self.row = rows.new_zeros(len(counts) * self.K)  # of each slot; an empty one has that of the first row
        self.row[self.slot] = rows
        used = 0 if old == 0 or not len(rows) else int(self.filled.max())
        room = min(self.steps, used + CHUNK)
        source = slots[self.row] if len(rows) else self.row
        self.own = [(self._moved(k, source, used, room), self._moved(v, source, used, room)) for k, v in self.own]

    def _moved(self, x: Tensor, source: Tensor, used: int, room: int) -> Tensor:
        """[G, heads, K, W, D] of old slots -> the same of the present ones, with zeros behind what is used: masked
        places are multiplied by 0, which inf and NaN would survive"""
        new = x.new_zeros(len(self.prompt_lengths), x.shape[1], self.K, room, x.shape[-1])
        if used:
            K = x.shape[2]
            rows = x[source // K, :, source % K, :used]  # [slots, heads, used, D]
            new[:, :, :, :used] = rows.unflatten(0, (-1, self.K)).transpose(1, 2)
        return new

    def begin(self) -> Tensor:
        """Before a token of each row is computed. -> its position [R, 1]"""
        self.masks = {}
        self.width = (int(self.filled.max()) if self.together is None else self.together) + 1
        if self.width > self.own[0][0].shape[3]:
            self._arrange(self.slot)
        return (self.prompt_lengths[self.group] + self.filled).unsqueeze(-1)

    def advance(self, going: Tensor) -> None:
        """Rows that are `going` have one more token in their caches; the others wait to be dropped."""
        self.filled = self.filled + (going if self.together is None else 1)
        self.together = None if self.together is None else self.together + 1

    def mask(self, window: int | None) -> Tensor | None:
        """-inf where a slot's row does not see [its prompt | itself]. [G, 1, K, 1, P + width]; None: it sees all"""
        if window not in self.masks:
            prompts, P = self.prompt_lengths[self.group].unsqueeze(-1), self.prompts[0][0].shape[2]
            at, own = torch.arange(P, device=self.device), torch.arange(self.width, device=self.device)
            filled = self.filled.unsqueeze(-1)
            hidden = torch.cat([(at >= prompts).expand(len(filled), -1), own > filled], -1)
            if window is not None:
                positions = torch.cat([at.expand(len(filled), -1), prompts + own], -1)
                hidden |= prompts + filled - positions >= window
            hidden = hidden[self.row].view(-1, 1, self.K, 1, P + self.width)
            shown = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
            self.masks[window] = shown if hidden.any() else None
        return self.masks[window]

    def rotary(self, given: Pair) -> Pair:
        """cos [R, 1, D] and sin of a pass as [R, 1, 2, D / 2], such that x cos + (x's halves exchanged) sin is rotated;
        the same for all layers that are given the same."""
        if self.rotation is None or self.rotation[0] is not given[0]:
            cos, sin = (x.to(self.dtype).unflatten(-1, (2, -1)) for x in given)
            self.rotation = given[0], (cos, torch.stack([-sin[:, :, 0], sin[:, :, 1]], 2))
        return self.rotation[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.own[0][0].dtype

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Of each row's new token; stores its key and value. q [R, H, D], k and v [R, heads, D] -> [R, H, D]"""
        (pk, pv), (ok, ov) = self.prompts[layer], self.own[layer]
        G, heads, P, D = pk.shape
        self._store(ok, k)
        self._store(ov, v)
        grid = (G, heads, self.K, q.shape[1] // heads)
        x = pk.new_empty(*grid, D)
        x.copy_(self._in_slots(q, heads).transpose(1, 2)).mul_(scale)
        ok, ov = (y[:, :, :, : self.width].flatten(0, 2) for y in (ok, ov))
        own = torch.bmm(x.flatten(0, 2), ok.mT).view(*grid, self.width)
        seen = torch.bmm(x.flatten(0, 1).flatten(1, 2), pk.flatten(0, 1).mT).view(*grid, P)
        scores, mask = torch.cat([seen, own], -1).float(), self.mask(window)
        probs = (scores if mask is None else scores.add_(mask)).softmax(-1).to(pk.dtype)
        out = torch.bmm(probs[..., P:].flatten(0, 2), ov).view(*grid, D)
        out += torch.bmm(probs[..., :P].flatten(0, 1).flatten(1, 2), pv.flatten(0, 1)).view(*grid, D)
        found = q.new_empty(G, self.K, heads, *out.shape[3:]).copy_(out.transpose(1, 2)).view(-1, *q.shape[1:])
        return found if self.even else found[self.slot]

    def _in_slots(self, x: Tensor, heads: int) -> Tensor:
        """[R, H, D] -> [G, K, heads, H / heads, D]"""
        return (x if self.even else x[self.row]).unflatten(0, (-1, self.K)).unflatten(2, (heads, -1))

    def _store(self, own: Tensor, x: Tensor) -> None:
        if self.together is None:
            own[self.at[0], :, self.at[1], self.filled] = x.to(own.dtype)
        else:
            own[:, :, :, self.together] = self._in_slots(x, x.shape[1]).squeeze(3).transpose(1, 2)

    def _dtype(self, dtype: torch.dtype) -> torch.dtype:
        """On a CPU float32: its products of a few rows in bfloat16 take longer (docs/performance.md)."""
        return torch.float32 if self.device.type == "cpu" and dtype == torch.bfloat16 else dtype


def _joined(old: Tensor, new: Tensor, spans: Sequence[slice], longest: int) -> Tensor:
    """[G, heads, P, D] and prompts at `spans` of [heads, N, D] -> [G + spans, heads, longest, D]"""
    G, heads, P, D = old.shape
    out = old.new_zeros(G + len(spans), heads, longest, D)
    out[:G, :, :P] = old
    for i, span in enumerate(spans):
        out[G + i, :, : span.stop - span.start] = new[:, span]
    return out


def decoding_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    cache: Cache, sliding_window: int | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface. query [R, H, 1, D], key and value [R, heads, 1, D] -> [R, 1, H, D]"""
    refuse(module, others)
    found = cache.attend(module.layer_idx, query[:, :, 0], key[:, :, 0], value[:, :, 0], scaling, sliding_window)
    return found.to(query.dtype).unsqueeze(1), None


AttentionInterface.register(NAME, decoding_attention)
