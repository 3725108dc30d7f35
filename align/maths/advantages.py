"""Advantages: how much better was this completion than what could be expected?

All take the rewards of K completions of each prompt, [prompts, K], and return [prompts, K].
"""

from __future__ import annotations

from torch import Tensor


def group_centered(rewards: Tensor) -> Tensor:
    """Dr. GRPO's advantage: each completion against the mean of its group (arXiv:2503.20783, section 3.2).

        A_i = r_i - mean_j r_j

    rewards [prompts, K] -> advantages [prompts, K]
    """
    rewards = _from_first(rewards)
    return rewards - rewards.mean(-1, keepdim=True)


def group_normalized(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """GRPO's advantage: the centred reward in units of the group's spread (arXiv:2402.03300, section 4.1.2).

        A_i = (r_i - mean_j r_j) / (std_j r_j + eps)

    std has K - 1 in its denominator and eps = 1e-4, as in TRL; other tools differ in both (docs/algorithms.md, G1).
    A group of equal rewards has advantages of exactly 0.
    rewards [prompts, K] -> advantages [prompts, K]
    """
    centered = group_centered(rewards)
    return centered / (rewards.std(-1, keepdim=True) + eps)


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO's advantage: each completion against the mean of its K-1 siblings (arXiv:2402.14740, section 2.3).

        A_i = r_i - sum_{j != i} r_j / (K - 1)

    rewards [prompts, K] -> advantages [prompts, K]
    """
    rewards = _from_first(rewards)
    siblings = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
    return rewards - siblings


def _from_first(rewards: Tensor) -> Tensor:
    """Rewards relative to the first of their group: no difference to a difference, but equal rewards cancel exactly.

    Without it the mean of eight times 0.7 is not 0.7, and Adam turns what is left into whole steps.
    """
    assert rewards.ndim == 2 and rewards.shape[-1] >= 2, f"need [prompts, K >= 2], got {tuple(rewards.shape)}"
    return rewards - rewards[:, :1]


ADVANTAGES = {
    "group_centered": group_centered,
    "group_normalized": group_normalized,
    "leave_one_out": leave_one_out,
}
