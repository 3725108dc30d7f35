"""Advantages: how much better was this completion, or this token, than what could be expected?

Those of a group take the rewards of K completions of each prompt, [prompts, K], and return [prompts, K]. Those of
tokens take rewards [B, T] at the positions of `mask` [B, T] bool, which is True from the first token of a completion
to its last, and return [B, T] with 0 elsewhere.
"""

from __future__ import annotations

import torch
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


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16), backwards over each completion.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}

    V_t is the value before token t. A completion is an episode: after its last token V and A are 0, whether it ended or
    was cut off. lam = 0 is the TD error, gamma = lam = 1 the return less the value.
    rewards, values [B, T], mask [B, T] bool -> [B, T], 0 where mask is False
    """
    assert rewards.shape == values.shape == mask.shape, (rewards.shape, values.shape, mask.shape)
    nothing = torch.zeros_like(rewards)
    rewards, values = torch.where(mask, rewards, nothing), torch.where(mask, values, nothing)
    advantages = torch.zeros_like(rewards)
    following_advantage = following_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = torch.where(mask[:, t], delta + gamma * lam * following_advantage, nothing[:, t])
        advantages[:, t], following_value = following_advantage, values[:, t]
    return advantages


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """What is still to come, this token's reward included: sum_{s >= t} gamma^(s - t) r_s.

    rewards [B, T], mask [B, T] bool -> [B, T], 0 where mask is False
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


GROUP = {
    "group_centered": group_centered,
    "group_normalized": group_normalized,
    "leave_one_out": leave_one_out,
}
