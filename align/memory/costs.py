"""Activations, logits, caches and operations of a transformer by the published formulas. Pure arithmetic."""

from __future__ import annotations

from align.memory.dimensions import Dimensions


def activations(shape: Dimensions, batch: int, length: int, *, flash: bool) -> float:
    """Bytes that a training pass keeps with 16-bit activations and nothing recomputed.

        s b h L (34 + 5 a s / h)        (arXiv:2205.05198, eq. 1 times L)

    of a GPT block with its 4 h MLP and dropout. Attention that keeps no scores (flash) drops the second term.
    """
    quadratic = 0.0 if flash else 5 * shape.heads * length / shape.hidden
    return length * batch * shape.hidden * shape.layers * (34 + quadratic)


def logits(shape: Dimensions, batch: int, length: int) -> float:
    """Bytes of one float32 copy of all logits; log-softmax and gradient make it two to three."""
    return 4.0 * batch * length * shape.vocab


def most_sequences(vram: float, weights: float, token: float, length: int) -> int:
    """Sequences whose caches fit beside the weights."""
    return max(int((vram - weights) // (token * length)), 0)


# Operations a token for each parameter (arXiv:2001.08361, table 1): a product's multiplication and addition, forward;
# as many for the gradient of its input, and for that of its weights, which LoRA's frozen base does without.
OPERATIONS = {"forward, or a token generated": 2, "training, all weights": 6, "training, LoRA": 4}
