"""What an experiment of this project holds at its peak, on each device, from its config and the model's dimensions.

peak = what is held throughout + the largest of sampling, scoring and a training pass
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from align.algo_laws import UNTRAINED
from align.memory import kept, states
from align.memory.dimensions import Dimensions
from align.memory.kept import WIDE, Training
from align.memory.load import Load, load_of
from align.memory.place import Place
from align.schema import Experiment

# Resident memory of a process that runs model=tiny (docs/memory.md): interpreter and libraries, and what products in
# bfloat16 keep on a CPU for every shape that they have seen, most of them of decoding.
ON_POLICY, TRL = 0.50e9, 0.59e9
KERNELS, FEWER_KERNELS = 0.4e9, 0.1e9
# Of what a training pass asks of malloc, the share that it takes beside it: activations stay where blocks that were
# worked with have been, and what is left between them is too small for the next (docs/memory.md). CUDA has its own way
HOLES = 0.5
SCORED = 2048  # tokens of a forward pass without gradient, as align.probe.TOKENS
UNSHARED = "whole on each device"


class Part(NamedTuple):
    name: str
    size: float  # bytes
    says: str


@dataclass(frozen=True)
class Estimate:
    held: tuple[Part, ...]
    phases: tuple[Part, ...]  # of which one is there at a time

    @property
    def largest(self) -> Part:
        return max(self.phases, key=lambda part: part.size)

    @property
    def peak(self) -> float:
        return sum(part.size for part in self.held) + self.largest.size


class Roles(NamedTuple):
    """Models of the policy's size: those that are trained, and those that are only asked."""

    trained: tuple[str, ...]
    frozen: tuple[str, ...]


def roles(e: Experiment) -> Roles:
    kind, learned = e.algo.kind, e.reward.learned is not None and e.algo.kind != "reward"
    if kind == "on_policy":
        critic = e.algo.critic is not None and e.algo.critic.kind == "adapter"
        frozen = (("reference",) if e.algo.kl.where != "none" else ()) + (("reward model",) if learned else ())
        return Roles(("policy", "critic") if critic else ("policy",), frozen)
    if kind in UNTRAINED:
        return Roles((), ("policy", "reward model") if learned else ("policy",))
    if kind == "preference":
        return Roles(("policy",), () if e.algo.loss in ("simpo", "orpo") else ("reference",))
    return Roles(("reward model",) if kind == "reward" else ("policy",), ())


def training_of(e: Experiment, place: Place) -> Training:
    lora = e.model.lora
    return Training(place.number, lora.rank if lora else 0, lora.targets if lora else "all-linear")


def estimate(e: Experiment, shape: Dimensions, place: Place) -> Estimate:
    how, load = training_of(e, place), load_of(e, place)
    held = [*_process(e, place), *(_full(e, shape, place) if how.full else _adapters(e, shape, how, place))]
    held += _sampling_copy(e, shape, how, place)
    phases = [_scoring(shape, how, load)]
    if load.samples:
        phases.append(_sampling(shape, place, load))
    if load.trains:
        phases.append(_training(shape, how, load, 0 if place.gpus else HOLES))
    return Estimate(tuple(part for part in held if part.size), tuple(phases))


def full_copies(e: Experiment, shape: Dimensions, place: Place) -> float:
    """Bytes on each device with every model whole, mixed-precision Adam and nothing shared."""
    found, P = roles(e), shape.parameters
    frozen = states.FROZEN * P / (place.ranks if place.split.weights else 1)
    return len(found.trained) * states.zero(P, place.ranks, place.zero) + len(found.frozen) * frozen


def _process(e: Experiment, place: Place) -> list[Part]:
    if place.gpus:
        return []
    decodes = e.algo.kind in ("on_policy", *UNTRAINED)
    kernels = 0 if place.number == WIDE else KERNELS if decodes else FEWER_KERNELS
    return [
        Part("process", ON_POLICY if decodes else TRL, "interpreter and libraries, measured"),
        Part("kernels", kernels, "of bfloat16 products, for each shape seen: grows with a run, measured"),
    ]


def _adapters(e: Experiment, shape: Dimensions, how: Training, place: Place) -> list[Part]:
    """One base under all roles; an adapter in float32 for each, a reference is the base with its adapter off."""
    found = roles(e)
    trained, asked = len(found.trained), len([role for role in found.frozen if role == "reward model"])
    idle = 1 if e.algo.kind in ("reward", *UNTRAINED) else 0  # the policy's adapter, which nobody trains
    R, split = shape.adapter(how.rank, how.targets), place.split
    names = ", ".join((*found.trained, *found.frozen))
    packed = (
        0 if e.model.quant is None else shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    )
    base = (shape.parameters - packed) * place.number + packed * states.FOUR_BITS
    return [
        Part("base weights", place.share(base, split.weights), f"one for {names}"),
        Part("adapters", place.share((trained + asked + idle) * R * WIDE, split.weights),
             f"{R:,} parameters each, float32"),
        Part("gradients", place.share(trained * R * WIDE, split.gradients), "of adapters that are trained"),
        Part("optimizer", place.share(2 * trained * R * WIDE, split.optimizer), "AdamW's two moments, float32"),
    ]  # fmt: skip


def _full(e: Experiment, shape: Dimensions, place: Place) -> list[Part]:
    """All in the base's dtype, without a float32 copy; the reference is a copy, kept by every run that has none too."""
    size, split = shape.parameters * place.number, place.split
    trains = bool(roles(e).trained)
    return [
        Part("policy weights", place.share(size, split.weights), f"{shape.parameters:,} parameters"),
        Part("reference weights", place.share(size, split.weights), "a copy: there is no adapter to switch off"),
        Part("gradients", place.share(trains * size, split.gradients), "of all weights"),
        Part("optimizer", place.share(trains * 2 * size, split.optimizer), "AdamW's two moments, in the base's dtype"),
    ]


def _sampling_copy(e: Experiment, shape: Dimensions, how: Training, place: Place) -> list[Part]:
    """align/merged.py: weights that differ from those that are trained: merged, put side by side, or laid out anew."""
    if e.algo.kind == "reward":
        return []
    relaid = not place.gpus and place.number == 2  # the layout of the CPU's kernels
    side_by_side = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    merged = {linear.name for linear in shape.adapted(how.targets)} if not how.full else set()
    unmerged = e.sampling.lora != "merged"
    size = 0
    for linear in shape.linears:
        copied = not unmerged if linear.name in merged else relaid or linear.name in side_by_side
        size += linear.inputs * linear.outputs * (copied and e.model.quant is None)
    weights = shape.layers * size + (shape.embedding if relaid else 0)
    return [Part("sampling copy", weights * place.number, f"merged linear layers; {UNSHARED}")]


def _sampling(shape: Dimensions, place: Place, load: Load) -> Part:
    """Caches of completions and of their prompts, logits and softmax. On a CPU caches are float32."""
    cache = shape.cache(place.number if place.gpus else WIDE)
    size = cache * (load.rows * load.completion + load.rows / load.siblings * load.prompt)
    logits = load.rows * shape.vocab * (place.number + WIDE)
    says = f"{load.rows} completions of {load.completion} tokens: logits; caches, {cache:,} B a token"
    return Part("sampling", size + logits, says)


def _scoring(shape: Dimensions, how: Training, load: Load) -> Part:
    """A forward pass without gradient: what one block works with, and the LM head of policy and reference."""
    block = how.number * (3 * shape.intermediate + 6 * shape.hidden) * SCORED
    size = block + kept.scores(shape, how.number) * load.seen + 2 * kept.head(shape, how.number)
    return Part("scoring", size, f"{SCORED} tokens forward, {kept.CHUNK} positions through the LM head")


def _training(shape: Dimensions, how: Training, load: Load, holes: float) -> Part:
    tokens = load.tokens * kept.token(shape, how) + load.predicted * kept.predicted(shape, how)
    head = kept.head(shape, how.number) if load.predicted else 0
    if load.whole_logits:
        tokens += load.tokens * kept.unpacked(shape, how)
        head = load.tokens * shape.vocab * 5 * how.number
    work = max(head, load.tokens * kept.backward(shape, how) + kept.scores(shape, how.number) * load.seen)
    a_token = kept.token(shape, how)
    says = f"{load.tokens:,.0f} tokens forward and backward, {a_token:,.0f} B a token"
    return Part("training", (tokens + work) * (1 + holes), says + (f"; {holes:.0%} more for holes" if holes else ""))
