"""The one forward pass that everything trains and scores with: token logprobs and entropy of completions.

Only positions that predict a completion token go through the LM head, in chunks whose logits are not kept: a frozen
head leaves its derivative instead (align/head.py), one that is trained has them recomputed. A full [B, L, V] of logits
would be the largest tensor of a training step (0.8 GB at 32 x 128 tokens of SmolLM2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.attention import can_pack
from align.halving import Halving, TooLarge
from align.head import TokenLogprobs, is_plain
from align.maths.draw import warp
from align.maths.logprobs import exact_kl, kept_logprobs, token_logprobs
from align.packing import Packed, groups_of, pack, right_pad
from align.records import Completions

AS_GIVEN = Halving(alone=False)  # what runs out of memory has run out of memory
CHUNK = 64  # positions through the LM head at once; 64 x 49152 float32 logits are 13 MB


@dataclass(frozen=True)
class Batch:
    """Rows of [prompt | completion], padded on the right; the completion of row i starts at `starts[i]`."""

    ids: Tensor  # [B, L] int64
    mask: Tensor  # [B, L] bool, prompt and completion
    starts: Tensor  # [B] int64
    completion_mask: Tensor  # [B, T] bool

    def rows(self, chosen: Tensor) -> Batch:
        """Some rows, cut to the longest of them."""
        length = int(self.mask[chosen].sum(-1).max())
        width = max(int(self.completion_mask[chosen].sum(-1).max()), 1)
        return Batch(
            self.ids[chosen, :length],
            self.mask[chosen, :length],
            self.starts[chosen],
            self.completion_mask[chosen, :width],
        )

    @cached_property
    def prompts(self) -> list[tuple[int, ...]]:
        return [tuple(row[:start]) for row, start in zip(self.ids.tolist(), self.starts.tolist(), strict=True)]

    @cached_property
    def packed(self) -> Packed:
        ends = self.mask.sum(-1).tolist()
        completions = [row[len(prompt) : end] for row, prompt, end in
                       zip(self.ids.tolist(), self.prompts, ends, strict=True)]  # fmt: skip
        return pack(self.prompts, completions, self.ids.device)


def batch_of(completions: Completions, pad: int, device: torch.device) -> Batch:
    rows = [
        (*prompt, *ids[mask].tolist())
        for prompt, ids, mask in zip(completions.prompt_ids, completions.ids, completions.mask, strict=True)
    ]
    ids, mask = right_pad(rows, pad, device)
    starts = torch.tensor([len(prompt) for prompt in completions.prompt_ids], device=device)
    return Batch(ids, mask, starts, completions.mask.to(device))


class Scorer(nn.Module):
    """A causal LM whose forward is a scoring pass. DDP must wrap this, not the LM: it only sees forward."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies [B, T] float32 at the sampling temperature, 0 where completion_mask is False."""
        return self.score(*completion_hidden(self.model, batch), batch.completion_mask)

    def score(self, hidden: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """From the N hidden states that predict the completion tokens, [N, H] and [N], to [B, T] as in `forward`."""
        matrix, cap = head_of(self.model)
        if is_plain(matrix):
            logprobs, entropies = TokenLogprobs.apply(hidden, matrix.weight, targets, self.temperature, cap, CHUNK)
            return scatter(logprobs, mask), scatter(entropies, mask)
        head = output_head(self.model)
        logprobs, entropies = [], []
        for h, y in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            if torch.is_grad_enabled() and h.requires_grad:
                scored = checkpoint(self._score, head, h, y, use_reentrant=False)
            else:
                scored = self._score(head, h, y)
            logprobs.append(scored[0])
            entropies.append(scored[1])
        return scatter(torch.cat(logprobs), mask), scatter(torch.cat(entropies), mask)

    def _score(self, head: Any, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(head(hidden), targets, self.temperature)


@torch.no_grad()
def score(
    scorer: Callable[[Batch], Any], batch: Batch, halving: Halving = AS_GIVEN, tokens: int | None = None
) -> tuple[Tensor, ...]:
    """`scorer(batch)` without gradient, some rows at a time, in the order given. -> what it returns, each [B, T]"""
    fields: list[Tensor] = []
    for chosen, got in in_parts(scorer, batch, halving, tokens):
        if not fields:
            fields = [value.new_zeros(batch.completion_mask.shape) for value in got]
        for field, value in zip(fields, got, strict=True):
            field[chosen, : value.shape[1]] = value
    return tuple(fields)


class Sharpening(NamedTuple):
    """How a policy's distribution is changed before it is sampled."""

    temperature: float = 1.0
    top_p: float | None = None  # after the temperature; None: nothing is cut off


AS_IT_IS = Sharpening()


@dataclass(frozen=True)
class Divergence:
    """How a policy differs from its reference on given completions; all [B, T] float32, 0 where the mask is False."""

    logprobs: Tensor
    reference_logprobs: Tensor
    entropy: Tensor  # of the policy
    exact_kl: Tensor  # over the full vocabulary, at each position


@torch.no_grad()
def divergence(
    policy: nn.Module,
    reference: nn.Module,
    batch: Batch,
    halving: Halving = AS_GIVEN,
    sampled: Sharpening = AS_IT_IS,
    tokens: int | None = None,
) -> Divergence:
    """The policy as it is sampled against the reference as it is, on the same rows."""
    heads = output_head(policy), output_head(reference)

    def diverge(part: Batch) -> list[Tensor]:
        (p_hidden, targets), (q_hidden, _) = completion_hidden(policy, part), completion_hidden(reference, part)
        chunks = zip(p_hidden.split(CHUNK), q_hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        values = torch.cat([_diverge(heads[0](p), heads[1](q), y, sampled) for p, q, y in chunks], dim=1)
        return [scatter(value, part.completion_mask) for value in values]

    return Divergence(*score(diverge, batch, halving, tokens))


def in_parts(
    scorer: Callable[[Batch], Any], batch: Batch, halving: Halving, tokens: int | None
) -> Iterator[tuple[Tensor, Any]]:
    """(rows, `scorer` of them) of each part; one that runs out of memory is halved."""
    parts = micro_batches(batch, halving.rows, tokens)
    while parts:
        chosen = parts.pop(0)
        try:
            with halving.trying(len(chosen)):
                got = scorer(batch.rows(chosen))
        except TooLarge:
            got = None
        if got is None:
            halving.halve(len(chosen))
            parts = [*chosen.chunk(2), *parts]
        else:
            yield chosen, got


def _diverge(p: Tensor, q: Tensor, targets: Tensor, sampled: Sharpening) -> Tensor:
    """logits [N, V] of both, targets [N] -> [4, N]: the fields of Divergence"""
    reference_logprobs, _ = token_logprobs(q, targets)
    if sampled.top_p is None:
        logprobs, entropy = token_logprobs(p, targets, sampled.temperature)
        kl = exact_kl(p, q, sampled.temperature)
    else:
        z = p.float() / sampled.temperature
        kept = warp(z, top_p=sampled.top_p)
        logprobs, entropy = kept_logprobs(z, kept, targets)
        kl = exact_kl(kept, q)
    return torch.stack([logprobs, reference_logprobs, entropy, kl])


def completion_hidden(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states that predict a completion token, and those tokens, row by row. -> [N, H], [N] int64"""
    decoder = backbone(model)
    rows, offsets = batch.completion_mask.nonzero(as_tuple=True)
    positions = batch.starts[rows] + offsets
    targets = batch.ids[rows, positions]
    if can_pack(decoder):
        return batch.packed.hidden(decoder, use_cache=False)[batch.packed.predicting], targets
    hidden = decoder(
        input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False, return_dict=True
    ).last_hidden_state
    return hidden[rows, positions - 1], targets


def micro_batches(batch: Batch, rows: int | None, tokens: int | None = None) -> list[Tensor]:
    """Row indices of one pass each: at most `rows` rows and `tokens` tokens, a prompt counted once, but for a row that
    is longer than that alone. Answers to one prompt stay together, and what is alike in length. Deterministic."""
    lengths, starts = batch.mask.sum(-1).tolist(), batch.starts.tolist()
    groups = [sorted(group, key=lengths.__getitem__) for group in groups_of(batch.prompts)]
    parts, part, used = list[list[int]](), list[int](), 0
    for group in sorted(groups, key=lambda group: sum(lengths[row] for row in group)):
        whole, new = lengths[group[0]] + sum(lengths[row] - starts[row] for row in group[1:]), True
        if part and tokens is not None and used + whole > tokens >= whole:
            parts.append(part)
            part, used = [], 0
        for row in group:
            cost = lengths[row] - (0 if new else starts[row])
            full = (rows is not None and len(part) == rows) or (tokens is not None and used + cost > tokens)
            if part and full:
                parts.append(part)
                part, used, cost = [], 0, lengths[row]
            part.append(row)
            used, new = used + cost, False
    return [torch.tensor(part, device=batch.ids.device) for part in (*parts, part)]


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values of the True positions, row-major -> [B, T] with 0 elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def backbone(model: Any) -> Any:
    """The decoder of a causal LM, through PEFT if need be."""
    return causal_lm(model).get_decoder()


def head_of(model: Any) -> tuple[Any, float | None]:
    """The LM head, and the soft cap on its logits."""
    lm = causal_lm(model)
    return lm.get_output_embeddings(), getattr(lm.config.get_text_config(), "final_logit_softcapping", None)


def output_head(model: Any) -> Any:
    """hidden [N, H] -> logits [N, V], with the soft cap of models that have one."""
    head, cap = head_of(model)
    if cap is None:
        return head
    return lambda hidden: torch.tanh(head(hidden) / cap) * cap


def causal_lm(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
