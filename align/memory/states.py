"""Bytes of a model's training states: weights, gradients, optimizer. Pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple

WEIGHT, GRADIENT, OPTIMIZER = 2, 2, 12  # bytes a parameter: 16 bits; 16 bits; float32 copy and Adam's two moments
TRAINED = WEIGHT + GRADIENT + OPTIMIZER
FROZEN = WEIGHT
# 4 bits; 8 for the scale of each block of 64, 32 for that of 256 scales (arXiv:2305.14314, section 3)
FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
STAGES = (0, 1, 2, 3)


class Shares(NamedTuple):
    """Whether a ZeRO stage splits each of the three over the ranks."""

    weights: bool
    gradients: bool
    optimizer: bool


def shares(stage: int) -> Shares:
    return Shares(stage >= 3, stage >= 2, stage >= 1)


def zero(parameters: float, gpus: int, stage: int) -> float:
    """Bytes of model states on each of N ranks, mixed-precision Adam (arXiv:1910.02054, section 3.1 and figure 1).

    stage 0 (data parallel) 16 P,  1: 4 P + 12 P / N,  2: 2 P + 14 P / N,  3: 16 P / N
    """
    parts = zip((WEIGHT, GRADIENT, OPTIMIZER), shares(stage), strict=True)
    return sum(parameters * size / (gpus if split else 1) for size, split in parts)


def communication(parameters: float, stage: int) -> float:
    """Elements that a rank sends in a step: 2 P, at stage 3 3 P (arXiv:1910.02054, section 7)."""
    return parameters * (3 if stage == 3 else 2)


class Method(NamedTuple):
    """What full fine-tuning with a method keeps: models of the policy's size."""

    names: str
    trained: int
    frozen: int
    lora: str  # the same here, with LoRA
    says: str

    @property
    def bytes_each(self) -> int:
        """For each parameter of one model."""
        return TRAINED * self.trained + FROZEN * self.frozen


METHODS = (
    Method("sft, reward, simpo, orpo", 1, 0, "1 base, 1 adapter", "policy"),
    Method("dpo, ipo, cdpo, rdpo, ldpo, kto", 1, 1, "1 base, 1 adapter; reference = adapter off",
           "policy; reference (none if its logprobs are computed beforehand)"),
    Method("grpo, rloo and alike", 1, 2, "1 base, policy's and reward model's adapters",
           "policy; reference, reward model (neither with a rule as reward and no KL)"),
    Method("ppo", 2, 2, "1 base, 3 adapters, 2 of them trained", "policy, critic; reference, reward model"),
)  # fmt: skip


def lora_states(parameters: float, adapter: float) -> float:
    """A frozen 16-bit base, and an adapter with all its states."""
    return FROZEN * parameters + TRAINED * adapter
