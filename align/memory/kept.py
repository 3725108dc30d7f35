"""What this project keeps of a token between forward and backward, counted step of autograd by step of autograd.

Packed rows, LoRA layers, RMSNorm and SwiGLU that keep their inputs, attention that keeps no scores, an LM head that
keeps no logits (docs/performance.md). tests/memory counts the tensors that a pass really saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.memory.dimensions import Dimensions

WIDE = 4  # bytes of a float32
INDEX = 8  # of an int64
PACKED = ("llama", "qwen2", "qwen3", "gemma3_text")  # as align.attention.FAMILIES, which a test compares
CHUNK = 64  # positions through the LM head at once, as align.forward.CHUNK


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    number: int  # bytes of one in the base's dtype
    rank: int  # of the adapters; 0: all weights are trained
    targets: str | Sequence[str] = "all-linear"

    @property
    def full(self) -> bool:
        return self.rank == 0


def block(shape: Dimensions, how: Training) -> float:
    """Bytes that a block after the first keeps of each token."""
    if shape.model_type == "gemma3_text":
        return _attention(shape, how) + _gelu(shape, how) + 4 * _wide_norm(shape.hidden, how) + _head_norms(shape, how)
    return _attention(shape, how) + _swiglu(shape, how) + 2 * _norm(shape.hidden, how) + _head_norms(shape, how)


def token(shape: Dimensions, how: Training) -> float:
    """Bytes that a pass through the decoder keeps of each token, all blocks and what is around them.

    The first block's norm reads the embeddings, which need no gradient unless they are trained; rotary tables (cos and
    sin) are made once for all blocks.
    """
    norm = _wide_norm if shape.model_type == "gemma3_text" else _norm
    first = INDEX if how.full else -norm(shape.hidden, how)
    tables = 2 * shape.head_dim * how.number * (2 if shape.model_type == "gemma3_text" else 1)
    return shape.layers * block(shape, how) + first + tables + norm(shape.hidden, how)


def predicted(shape: Dimensions, how: Training) -> float:
    """Bytes that the LM head keeps of each completion token: where it stands, and d log p / d h; of a head that is
    trained the hidden state, from which the backward pass makes the logits again."""
    return INDEX + shape.hidden * how.number + (INDEX if how.full else 0)


def head(shape: Dimensions, number: int) -> float:
    """Bytes that the LM head works with at once, for each logit of CHUNK positions: itself and its softmax as float32,
    those of the other chunks of a product, and what that product takes for itself (measured, docs/memory.md)."""
    return CHUNK * shape.vocab * (46 if number == WIDE else 23)


def backward(shape: Dimensions, how: Training) -> float:
    """Bytes of each token that the backward pass of one MLP works with: gradients of its output, product, gate and up,
    the product made again, and what comes down the residual."""
    return how.number * (5 * shape.intermediate + 2 * shape.hidden)


def scores(shape: Dimensions, number: int) -> float:
    """Bytes that attention works with for each query and position it sees: scores and softmax as float32 and a copy, or
    five of the copy (align/attention.py, `_probabilities` and `backward`)."""
    return shape.heads * max(2 * WIDE + number, 5 * number)


def _norm(width: int, how: Training) -> float:
    """align.fused.RMSNorm: its input, and 1 / rms as float32."""
    return width * how.number + WIDE


def _wide_norm(width: int, how: Training) -> float:
    """Gemma's own: its input as float32, and 1 / rms; the normalised input too when the weight is trained."""
    return width * WIDE * (2 if how.full else 1) + WIDE


def _head_norms(shape: Dimensions, how: Training) -> float:
    if not shape.family.head_norms:
        return 0
    norm = _wide_norm if shape.model_type == "gemma3_text" else _norm
    return (shape.heads + shape.kv_heads) * norm(shape.head_dim, how)


def _inputs(shape: Dimensions, how: Training, readers: Sequence[str]) -> float:
    """Of layers that read the same input: it, once, and x A of each with an adapter. A frozen layer keeps neither."""
    if how.full:
        return how.number * next(linear.inputs for linear in shape.linears if linear.name == readers[0])
    adapted = [linear for linear in shape.adapted(how.targets) if linear.name in readers]
    return how.number * (adapted[0].inputs + len(adapted) * how.rank) if adapted else 0


def _attention(shape: Dimensions, how: Training) -> float:
    """Queries and keys after their rotation, values, and the inputs of the four layers."""
    kept = how.number * (shape.queries + 2 * shape.keys)
    return kept + _inputs(shape, how, ("q_proj", "k_proj", "v_proj")) + _inputs(shape, how, ("o_proj",))


def _swiglu(shape: Dimensions, how: Training) -> float:
    """align.fused.SwiGLU: gate and up; their product, down's input, is made again."""
    kept = how.number * 2 * shape.intermediate
    down = 0 if how.full else _inputs(shape, how, ("down_proj",))
    if down:
        down -= how.number * shape.intermediate
    return kept + _inputs(shape, how, ("gate_proj", "up_proj")) + down


def _gelu(shape: Dimensions, how: Training) -> float:
    """transformers' own: gate, activated gate, up, and down's input."""
    kept = how.number * 3 * shape.intermediate
    return kept + _inputs(shape, how, ("gate_proj", "up_proj")) + _inputs(shape, how, ("down_proj",))


def unpacked(shape: Dimensions, how: Training) -> float:
    """Bytes of each token on top where rows are padded: PyTorch's attention keeps its output, keys and values repeated
    for each query head, and a log-sum-exp."""
    return shape.layers * (how.number * (shape.queries + 2 * (shape.queries - shape.keys)) + WIDE * shape.heads)
