"""From logits to one token of each row: what is cut off, an exponential race in three heats, and the noise it runs on.

Where E_v are independent standard exponentials, argmax_v p_v / E_v is a draw from p. A race among blocks of the
vocabulary, one among the parts of the winning block and one among that part's tokens are together still exactly p,
P(block) P(part | block) P(token | part), for V / 1024 + 64 random numbers instead of V. Rounding of the logits changes
the token only where it decides a heat, which needs a near tie. Inverting the cumulative distribution is cheap too, but
there the bounds of thousands of tokens lie closer together than the sum's rounding (docs/performance.md).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

BLOCK, PART = 1024, 32  # near what needs the fewest numbers at 49k to 262k tokens, V / BLOCK + BLOCK / PART + PART
CACHED = 1 << 18  # probabilities at once, 1 MB: those of many rows leave the core's cache (docs/performance.md)
LEAST = 2.0**-53  # of the noise: the spacing of uniforms in float64


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

        b = argmax_b m_b / E_b,    c = argmax_{c in b} m_c / E_c,    y = argmax_{v in c} p_v / E_v,    m = sum of p

    A token of probability 0 is never drawn: the noise is between 2^-53 and 17, so a block that wins has a mass above
    1e-18, a part of it one above 1e-37, and something in it is above 0. A row that is no distribution (a NaN, +inf, or
    -inf throughout) has a NaN logprob, for the guard to find, and any token.
    logits [B, V], noise [B, noise_size(V)] -> tokens [B] int64, logprobs [B] float32, of softmax(logits)
    """
    rows = max(CACHED // logits.shape[-1], 1) if logits.device.type == "cpu" else len(logits)
    drawn = [
        _draw(z, None if noise is None else noise[i * rows : (i + 1) * rows]) for i, z in enumerate(logits.split(rows))
    ]
    tokens, logprobs = zip(*drawn, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    probs = logits.softmax(-1, dtype=torch.float32)
    tokens = logits.argmax(-1) if noise is None else _race(probs, noise)
    return tokens, probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log()


def noise_size(vocabulary: int) -> int:
    """Exponentials that one draw takes: one for each block, each part of a block, each token of a part."""
    return math.ceil(vocabulary / BLOCK) + BLOCK // PART + PART


def noise_of(seed: int, prompt_id: str, sample: int, positions: int, size: int) -> Tensor:
    """Standard exponentials of one completion, [positions, size] float32; those of a position never depend on how many
    positions are asked for.

    From uniforms in float64: float32's are multiples of 2^-24, and a token of probability 1e-7 would be drawn far too
    often or never. Not `exponential_`: its numbers depend on how torch was built.
    """
    key = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") & (2**63 - 1))
    uniforms = torch.rand(positions, size, generator=generator, dtype=torch.float64)
    # float32 has as many digits near 0, where races are won; what rounds to 1 would be infinite
    return uniforms.float().clamp_(LEAST, 1 - 2.0**-24).neg_().log1p_().neg_()


def _race(probs: Tensor, noise: Tensor) -> Tensor:
    V = probs.shape[-1]
    whole = V - V % BLOCK  # the last block may be shorter
    masses = probs[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < V:
        masses = torch.cat([masses, probs[:, whole:].sum(-1, keepdim=True)], dim=-1)
    assert noise.shape == (len(probs), noise_size(V)), (noise.shape, V)
    by_block, by_part, by_token = noise.split([masses.shape[-1], BLOCK // PART, PART], dim=-1)
    block = (masses / by_block).argmax(-1)
    index = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=probs.device)
    inside = probs.gather(-1, index.clamp(max=V - 1)).masked_fill(index >= V, 0.0).unflatten(-1, (-1, PART))
    part = (inside.sum(-1) / by_part).argmax(-1)
    tokens = inside[torch.arange(len(probs), device=probs.device), part]
    return block * BLOCK + part * PART + (tokens / by_token).argmax(-1)


def _top_k(z: Tensor, k: int) -> Tensor:
    least = z.topk(min(k, z.shape[-1])).values[:, -1:]
    return z.masked_fill(z < least, -math.inf)


def _top_p(z: Tensor, p: float) -> Tensor:
    """The tokens before which, from the most likely one down, there is less than p. They are looked for among ever more
    of the largest: sorting all takes far longer, and a language model's nucleus is small (docs/performance.md)."""
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
