"""From a rollout to what the loss needs: shaped rewards, advantages, and the tokens that count."""

from __future__ import annotations

import torch
from torch import Tensor

from align.maths import kl as kl_estimators
from align.maths.advantages import ADVANTAGES
from align.maths.masked import masked_sum
from align.records import Rollout, Targets
from align.schema import OnPolicy


def estimate(rollout: Rollout, algo: OnPolicy) -> Targets:
    """Advantages [B, T] of a rollout of B = prompts x K completions, prompt-major."""
    completions = rollout.completions
    rewards = shaped_rewards(rollout, algo)
    groups = rewards.view(-1, algo.group_size)
    advantages = ADVANTAGES[algo.advantage](groups).flatten()
    mask = completions.mask
    if algo.truncation.mode == "mask":
        mask = mask & completions.finished.unsqueeze(-1)
    stats = {
        "advantage/std": float(advantages.std()),
        "group/zero_signal": float((groups.max(-1).values == groups.min(-1).values).float().mean()),
        "reward/shaped": float(rewards.mean()),
    }
    return Targets(advantages.unsqueeze(-1).expand(mask.shape), mask, stats)


def shaped_rewards(rollout: Rollout, algo: OnPolicy) -> Tensor:
    """What the advantages are made of: the reward, less a penalty for being cut off, less the KL when it goes there.

        R_i = r_i - penalty [i truncated] - coef sum_t kl_t

    -> [B] float32
    """
    completions = rollout.completions
    rewards = rollout.rewards
    if algo.truncation.mode == "penalise":
        assert algo.truncation.penalty is not None
        rewards = rewards - algo.truncation.penalty * (~completions.finished).float()
    if algo.kl.where == "reward":
        assert algo.kl.estimator and algo.kl.coef is not None
        assert rollout.old_logprobs is not None and rollout.reference_logprobs is not None
        estimator = kl_estimators.ESTIMATORS[algo.kl.estimator]
        divergence = estimator(rollout.old_logprobs, rollout.reference_logprobs)
        rewards = rewards - algo.kl.coef * masked_sum(divergence, completions.mask, -1)
    return torch.as_tensor(rewards)
