"""The least time that a step could take on a machine: its fewest operations and bytes at the machine's own rates.

Counted is what no implementation of the same step can leave out. The prompt of a group is computed once, nothing is
padded, adapters are merged while sampling, the logits exist at completion positions only, no activation is computed
twice, and the frozen base has no weight gradients. Operations and memory traffic overlap perfectly: a phase takes the
longer of the two. Not counted: norms, rotary embeddings, softmax, sampling, activations read and written, Python.

A product of [n, a] and [a, b] is 2 n a b operations. With N block parameters, V x H of the LM head, R of the adapters,
C = 4 * layers * heads * head_dim operations of attention for each position that a query sees:

    forward of n tokens            2 N n + C * positions seen + 2 V H * (completion tokens)
    ... with adapters              + 2 R n
    backward                       2 N n + 4 R n + 2 C * positions seen + 2 V H * (completion tokens)
    decoding token t of the rows   (2 N + 2 V H) * alive + C * positions seen; reads every weight and the cache once
"""

from __future__ import annotations

from dataclasses import dataclass

ADAPTER_BYTES = 7 * 4  # AdamW in float32 reads weight, gradient and both moments, and writes all but the gradient


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind with LoRA on every linear layer of its blocks."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rank: int
    weight_bytes: int  # of one weight of the base

    @property
    def linears(self) -> list[tuple[int, int]]:
        """In and out features of a block's linear layers."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def block_weights(self) -> int:
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def adapter_weights(self) -> int:
        return self.layers * sum(self.rank * (a + b) for a, b in self.linears)

    @property
    def attention_flops(self) -> int:
        """Of one query for each position it sees: scores and weighted sum."""
        return 4 * self.layers * self.heads * self.head_dim

    @property
    def cache_bytes(self) -> int:
        """Of one position: keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.weight_bytes


@dataclass(frozen=True)
class Group:
    """A prompt and its completions, in tokens."""

    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """What a step works on. A last token is only fed where a reward model reads it: nothing is predicted from it."""

    groups: tuple[Group, ...]
    sampled: bool  # the step samples the completions itself
    reference: bool  # it scores them under a reference
    head: bool  # the loss is about tokens; else a scalar at each sequence's last token

    @property
    def completion_tokens(self) -> int:
        return sum(sum(group.completions) for group in self.groups)

    @property
    def fed(self) -> int:
        """Tokens through the blocks in one scoring pass."""
        return sum(group.prompt + sum(self._fed(group)) for group in self.groups)

    @property
    def seen(self) -> int:
        """Positions that the fed tokens see, themselves included."""
        total = 0
        for group in self.groups:
            total += _triangle(group.prompt)
            total += sum(n * group.prompt + _triangle(n) for n in self._fed(group))
        return total

    def _fed(self, group: Group) -> list[int]:
        return [n - 1 if self.head else n for n in group.completions]

    @property
    def worked_tokens(self) -> int:
        """Tokens generated and tokens trained on: those in the loss, for a reward model those of both sequences."""
        if not self.head:
            return sum(group.prompt * len(group.completions) + sum(group.completions) for group in self.groups)
        return self.completion_tokens * (2 if self.sampled else 1)


@dataclass(frozen=True)
class Machine:
    flops: float  # of large matrix products in the base's dtype, per second
    bytes: float  # of weights streamed from memory, per second

    def seconds(self, flops: float, traffic: float) -> float:
        return max(flops / self.flops, traffic / self.bytes)


def limit_parts(load: Load, shape: Shape, machine: Machine) -> dict[str, float]:
    """Seconds of each phase of a step."""
    heads = shape.head_weights * (load.completion_tokens if load.head else 0)
    weights = shape.weight_bytes * (shape.block_weights + (shape.head_weights if load.head else 0))
    blocks, adapters = shape.block_weights * load.fed, shape.adapter_weights * load.fed
    attention = shape.attention_flops * load.seen
    forward = 2 * blocks + attention + 2 * heads
    backward = 2 * blocks + 4 * adapters + 2 * attention + 2 * heads
    return {
        "sample": _sample_seconds(load, shape, machine) if load.sampled else 0.0,
        "reference": machine.seconds(forward, weights) if load.reference else 0.0,
        "forward": machine.seconds(forward + 2 * adapters, weights),
        "backward": machine.seconds(backward, weights),
        "optimizer": machine.seconds(0, ADAPTER_BYTES * shape.adapter_weights),
    }


def limit_seconds(load: Load, shape: Shape, machine: Machine) -> float:
    """The least time of a whole step, whose phases follow one another."""
    return sum(limit_parts(load, shape, machine).values())


def _sample_seconds(load: Load, shape: Shape, machine: Machine) -> float:
    """Prefill of each prompt once, then one pass for every further token of the rows that are still going."""
    weights = shape.weight_bytes * (shape.block_weights + shape.head_weights)
    prompts = [group.prompt for group in load.groups]
    prefill = 2 * shape.block_weights * sum(prompts) + 2 * shape.head_weights * len(prompts)
    total = machine.seconds(prefill + shape.attention_flops * sum(map(_triangle, prompts)), weights)
    longest = max(max(group.completions) for group in load.groups)
    for t in range(1, longest):  # the first token comes out of the prefill
        alive = [sum(n > t for n in group.completions) for group in load.groups]
        seen = sum(rows * (prompt + t) for rows, prompt in zip(alive, prompts, strict=True))
        kept = sum(_cached(rows, prompt, t) for rows, prompt in zip(alive, prompts, strict=True))
        flops = 2 * (shape.block_weights + shape.head_weights) * sum(alive) + shape.attention_flops * seen
        total += machine.seconds(flops, weights + shape.cache_bytes * kept)
    return total


def _cached(rows: int, prompt: int, t: int) -> int:
    """Positions in the cache of a group, the prompt's once."""
    return prompt + rows * t if rows else 0


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
