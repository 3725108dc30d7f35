"""From logits to one token of each row: what is cut off, a two-level exponential race, and the noise that it runs on.

Where E_v are independent standard exponentials, argmax_v p_v / E_v is a draw from p. With one race among blocks of the
vocabulary and one among the tokens of the winning block, P(token) = P(block) P(token | block) is still exactly p_v, for
V / 256 + 256 random numbers instead of V. Rounding of the logits changes the token only where it decides a race, which
needs a near tie. Inverting the cumulative distribution is cheap too, but there the bounds of thousands of tokens lie
closer together than the sum's rounding (docs/log.md).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

BLOCK = 256  # near the square root of usual vocabularies, where V / n + n is least
LEAST = 2.0**-53  # of the noise: half the spacing of uniforms in float64


def warp(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits of the distribution that is sampled from: z / T, then what is cut off becomes -inf.

    Temperature, top_k, top_p and min_p in this order, as transformers' warpers. What equals the last token that is kept
    is kept too; of tokens equal at the end of top_p, transformers drops some, whichever its sort puts first. What is
    null costs nothing.
    logits [B, V] -> [B, V], float32 unless nothing is to be done
    """
    z = logits if temperature == 1 else logits.float() / temperature
    if top_k is not None:
        z = _top_k(z.float(), top_k)
    if top_p is not None:
        z = _top_p(z.float(), top_p)
    if min_p is not None:
        z = z.float()
        z = z.masked_fill(z < z.amax(-1, keepdim=True) + math.log(min_p), -math.inf)
    return z


def draw(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token of each row from softmax(logits), by a race; without noise the most likely one.

        b = argmax_b m_b / E_b,  m_b = sum_{v in b} p_v;    y = argmax_{v in b} p_v / E'_v

    A token of probability 0 is never drawn: the noise is between 2^-53 and 37, so a block that wins has a mass above
    1e-18 and the token that wins in it a probability above 1e-22, far from where float32 underflows. A row that is no
    distribution (a NaN, +inf, or -inf throughout) has NaN logprobs, for the guard to find, and any token.
    logits [B, V], noise [B, noise_size(V)] -> tokens [B] int64, logprobs [B] float32, of softmax(logits)
    """
    probs = logits.softmax(-1, dtype=torch.float32)
    tokens = logits.argmax(-1) if noise is None else _race(probs, noise)
    return tokens, probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log()


def noise_size(vocabulary: int) -> int:
    """Exponentials that one draw takes: one for each block, then one for each token of a block."""
    return math.ceil(vocabulary / BLOCK) + min(vocabulary, BLOCK)


def noise_of(seed: int, prompt_id: str, sample: int, positions: int, size: int) -> Tensor:
    """Standard exponentials of one completion, [positions, size] float32; those of a position never depend on how many
    positions are asked for.

    From uniforms in float64: float32's are multiples of 2^-24, and a token of probability 1e-7 would be drawn far too
    often or never. Not `exponential_`: its numbers depend on how torch was built.
    """
    key = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") & (2**63 - 1))
    uniforms = torch.rand(positions, size, generator=generator, dtype=torch.float64)
    return uniforms.neg_().log1p_().neg_().clamp_(min=LEAST).float()


def _race(probs: Tensor, noise: Tensor) -> Tensor:
    V = probs.shape[-1]
    whole = V - V % BLOCK  # the last block may be shorter
    masses = probs[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < V:
        masses = torch.cat([masses, probs[:, whole:].sum(-1, keepdim=True)], dim=-1)
    blocks = masses.shape[-1]
    assert noise.shape == (len(probs), noise_size(V)), (noise.shape, V)
    block = (masses / noise[:, :blocks]).argmax(-1, keepdim=True)
    index = block * BLOCK + torch.arange(min(V, BLOCK), device=probs.device)
    inside = probs.gather(-1, index.clamp(max=V - 1)).masked_fill(index >= V, 0.0)
    return (block * BLOCK + (inside / noise[:, blocks:]).argmax(-1, keepdim=True)).squeeze(-1)


def _top_k(z: Tensor, k: int) -> Tensor:
    least = z.topk(min(k, z.shape[-1])).values[:, -1:]
    return z.masked_fill(z < least, -math.inf)


def _top_p(z: Tensor, p: float) -> Tensor:
    """The tokens before which, from the most likely one down, there is less than p. They are looked for among ever more
    of the largest: sorting all takes far longer, and a language model's nucleus is small (docs/log.md)."""
    V = z.shape[-1]
    probs, size = z.softmax(-1), min(64, V)
    while True:
        largest = probs.topk(size).values
        before = largest.cumsum(-1) - largest
        if size == V or bool((before[:, -1] >= p).all()):
            break
        size = min(8 * size, V)
    count = (before < p).sum(-1, keepdim=True)
    least = largest.gather(-1, (count - 1).clamp(min=0))  # a row with NaN has none
    return z.masked_fill(probs < least, -math.inf)
