"""Decoding token by token: one cache for each prompt, shared by its completions, and one for each completion.

Rows that have ended leave the batch, and waiting prompts take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "align_decoding"


class Cache:
    """Keys and values of `rows` completions, each at most `steps` tokens long, and of the prompts that they answer.

    Rows stand side by side, those of one prompt together. A row's own cache has its tokens from 0 on; prompts are
    padded on the right to the longest.
    """

    def __init__(self, rows: int, steps: int, device: torch.device):
        self.capacity, self.steps, self.device = rows, steps, device
        self.prompts: list[tuple[Tensor, Tensor]] = []  # of each layer, [G, heads, P, D] twice
        self.own: list[tuple[Tensor, Tensor]] = []  # of each layer, [rows, heads, steps, D] twice
        self.prompt_lengths = torch.zeros(0, dtype=torch.long, device=device)  # [G]
        self.group = torch.zeros(0, dtype=torch.long, device=device)  # [R] the prompt that each row answers
        self.filled = torch.zeros(0, dtype=torch.long, device=device)  # [R] tokens of each row in its own cache
        self.together: int | None = 0  # that number when it is the same for all rows
        self.masks: dict[int | None, Tensor | None] = {}

    def admit(self, keys: list[tuple[Tensor, Tensor]], spans: Sequence[slice], rows_of: Sequence[int]) -> None:
        """Add prompts, and rows_of[i] rows that answer the i-th. Of each layer keys and values [heads, N, D], in which
        the prompts stand at `spans`."""
        lengths = torch.tensor([span.stop - span.start for span in spans], device=self.device)
        first = len(self.prompt_lengths)
        self.prompt_lengths = torch.cat([self.prompt_lengths, lengths])
        longest = int(self.prompt_lengths.max())
        if not self.own:
            heads, _, D = keys[0][0].shape
            dtype = self._dtype(keys[0][0].dtype)
            self.own = [tuple(torch.zeros(self.capacity, heads, self.steps, D, dtype=dtype, device=self.device)
                              for _ in range(2)) for _ in keys]  # type: ignore[misc] # fmt: skip
            self.prompts = [(k.new_zeros(0, heads, 0, D, dtype=dtype), v.new_zeros(0, heads, 0, D, dtype=dtype))
                            for k, v in keys]  # fmt: skip
        for layer, new in enumerate(keys):
            self.prompts[layer] = tuple(_joined(old, x, spans, longest) for old, x in
                                        zip(self.prompts[layer], new, strict=True))  # type: ignore[assignment] # fmt: skip
        before, count = len(self.group), sum(rows_of)
        for k, v in self.own if before else ():  # what an earlier row left there would be multiplied by 0: not if it is inf
            k[before : before + count], v[before : before + count] = 0, 0
        groups = torch.arange(first, first + len(rows_of), device=self.device)
        self.group = torch.cat([self.group, groups.repeat_interleave(torch.tensor(rows_of, device=self.device))])
        self.filled = torch.cat([self.filled, self.filled.new_zeros(count)])
        self.together = 0 if before == 0 else None
        self._arrange()

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on, and the prompts that they answer."""
        used = self.filled[rows].amax() if len(rows) else 0
        for pair in self.own:
            for x in pair:
                x[: len(rows), :, :used] = x[:, :, :used].index_select(0, rows)
        groups, self.group = self.group[rows].unique(return_inverse=True)
        if len(groups) < len(self.prompt_lengths):
            self.prompt_lengths = self.prompt_lengths[groups]
            longest = int(self.prompt_lengths.max()) if len(groups) else 0
            self.prompts = [(k[groups, :, :longest], v[groups, :, :longest]) for k, v in self.prompts]
        self.filled = self.filled[rows]
        self._arrange()

    def _arrange(self) -> None:
        """Rows as [prompts, most rows of a prompt], for the product with the prompts' keys."""
        counts = self.group.bincount(minlength=len(self.prompt_lengths))
        self.K = int(counts.max()) if len(counts) else 0
        self.even = bool((counts == self.K).all())
        rank = torch.arange(len(self.group), device=self.device) - (counts.cumsum(0) - counts)[self.group]
        self.place = self.group * self.K + rank  # [R]
        self.row_at = torch.zeros(len(counts) * self.K, dtype=torch.long, device=self.device)
        self.row_at[self.place] = torch.arange(len(self.group), device=self.device)
        self.index = torch.arange(len(self.group), device=self.device)

    def advance(self, going: Tensor) -> None:
        """Rows that are `going` have one more token in their caches; the others wait to be dropped."""
        self.filled = self.filled + (going if self.together is None else 1)
        self.together = None if self.together is None else self.together + 1

    def begin(self) -> Tensor:
        """Before a token of each row is computed. -> its position [R, 1]"""
        self.masks = {}
        self.width = (int(self.filled.max()) if self.together is None else self.together) + 1
        return (self.prompt_lengths[self.group] + self.filled).unsqueeze(-1)

    def mask(self, window: int | None) -> Tensor | None:
        """What a row does not see of [its prompt | itself], as -inf. [R, 1, 1, P + width], None when it sees all"""
        if window not in self.masks:
            prompts, P = self.prompt_lengths[self.group].unsqueeze(-1), self.prompts[0][0].shape[2]
            at, own = torch.arange(P, device=self.device), torch.arange(self.width, device=self.device)
            filled = self.filled.unsqueeze(-1)
            hidden = torch.cat([(at >= prompts).expand(len(filled), -1), own > filled], -1)
            if window is not None:
                positions = torch.cat([at.expand(len(filled), -1), prompts + own], -1)
                hidden |= prompts + filled - positions >= window
            hidden = hidden.view(len(filled), 1, 1, -1)
            shown = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
            self.masks[window] = shown if hidden.any() else None
        return self.masks[window]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Of each row's new token; stores its key and value. q [R, H, D], k and v [R, heads, D] -> [R, H, D]"""
        (pk, pv), (ok, ov) = self.prompts[layer], self.own[layer]
        R, G, heads, P, D = len(q), *pk.shape
        if self.together is None:
            ok[self.index, :, self.filled] = k.to(ok.dtype)
            ov[self.index, :, self.filled] = v.to(ov.dtype)
        else:
            ok[:R, :, self.together], ov[:R, :, self.together] = k, v
        ok, ov = (x[:R, :, : self.width].flatten(0, 1) for x in (ok, ov))
        q = q.to(pk.dtype).mul(scale).view(R, heads, -1, D)
        own = torch.bmm(q.view(R * heads, -1, D), ok.mT).view(R, heads, -1, self.width)
        seen = self._by_row(torch.bmm(self._by_prompt(q), pk.flatten(0, 1).mT), G, heads)
        scores, mask = torch.cat([seen, own], -1).float(), self.mask(window)
        probs = (scores if mask is None else scores.add_(mask)).softmax(-1).to(pk.dtype)
        out = torch.bmm(probs[..., P:].reshape(R * heads, -1, self.width), ov).view(R, heads, -1, D)
        return out.add_(self._by_row(torch.bmm(self._by_prompt(probs[..., :P]), pv.flatten(0, 1)), G, heads)).flatten(1, 2)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """[R, heads, r, X] -> [G * heads, K * r, X]"""
        x = x if self.even else x[self.row_at]
        return x.unflatten(0, (-1, self.K)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _by_row(self, x: Tensor, G: int, heads: int) -> Tensor:
        """[G * heads, K * r, X] -> [R, heads, r, X]"""
        x = x.view(G, heads, self.K, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return x if self.even else x[self.place]

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
    cache: Cache, sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface. query [R, H, 1, D], key and value [R, heads, 1, D] -> [R, 1, H, D]"""
    found = cache.attend(module.layer_idx, query[:, :, 0], key[:, :, 0], value[:, :, 0], scaling, sliding_window)
    return found.to(query.dtype).unsqueeze(1), None


AttentionInterface.register(NAME, decoding_attention)
