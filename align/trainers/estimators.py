"""From a rollout to what the loss needs: shaped rewards, advantages, returns, and the tokens that count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align.maths import kl as kl_estimators
from align.maths.advantages import GROUP, gae, rewards_to_go
from align.maths.control import Moments, adapted_coef
from align.maths.importance import importance_weights
from align.maths.masked import masked_mean, masked_sum, masked_var, whiten
from align.maths.values import explained_variance
from align.records import Rollout, Targets
from align.schema import Gae, Importance, Kl, OnPolicy


@dataclass(frozen=True)
class Memory:
    """What is carried from one rollout to the next; a checkpoint holds it."""

    kl_coef: float | None  # None without a KL
    moments: Moments = Moments()  # of the rewards that `scale.normalise` has looked at

    def seen(self, rollout: Rollout, algo: OnPolicy) -> Memory:
        """With the rewards of a rollout taken into account: all of them (running), or the first rollout's (start)."""
        if algo.scale.normalise == "none" or (algo.scale.normalise == "start" and self.moments.count):
            return self
        rewards = rollout.rewards[rollout.rewards.isfinite()].double()
        return replace(self, moments=self.moments.with_(rewards.tolist()))

    def adapted(self, kl: Kl, nats: float, completions: int) -> tuple[Memory, bool]:
        """With the KL coefficient after a rollout that measured so many nats per sequence; whether a bound acted."""
        if kl.target_nats_per_sequence is None or kl.horizon_completions is None or self.kl_coef is None:
            return self, False
        coef, bounded = adapted_coef(
            self.kl_coef, nats, kl.target_nats_per_sequence, completions, kl.horizon_completions
        )
        return replace(self, kl_coef=coef), bounded


def estimate(rollout: Rollout, algo: OnPolicy, memory: Memory, limit: int) -> Targets:
    """Advantages [B, T] of a rollout of B = prompts x K completions, prompt-major; `limit` is max_new_tokens."""
    completions = rollout.completions
    usable = rollout.finite
    if algo.advantage in GROUP:  # a group is compared as a whole or not at all
        usable = usable.view(-1, algo.group_size).all(-1).repeat_interleave(algo.group_size)
    mask = completions.mask & usable.unsqueeze(-1)
    token_rewards, stats = shaped_rewards(rollout, algo, memory, mask, limit)
    if algo.whiten.rewards:
        token_rewards = whiten(token_rewards, mask, shift_mean=False)
    returns = None
    if algo.advantage in GROUP:
        groups = token_rewards.sum(-1).view(-1, algo.group_size)
        per_completion = GROUP[algo.advantage](groups).flatten()
        advantages = per_completion.unsqueeze(-1).expand(mask.shape)
        compared = groups[usable.view(-1, algo.group_size).all(-1)]
        stats["advantage/mean"] = float(per_completion[usable].mean())
        stats["advantage/std"] = float(per_completion[usable].std())
        stats["group/zero_signal"] = float((compared.max(-1).values == compared.min(-1).values).float().mean())
    elif algo.gae is None:
        advantages = rewards_to_go(token_rewards, mask)
        stats |= _moments("advantage", advantages, mask)
    else:
        assert rollout.values is not None
        advantages, returns = _with_critic(token_rewards, rollout.values, mask, algo.gae)
        stats |= _moments("advantage", advantages, mask) | _moments("return", returns, mask)
        stats |= _moments("value", rollout.values, mask)
        stats["critic/explained_variance"] = float(explained_variance(rollout.values, returns, mask))
    if algo.truncation.mode == "mask":
        mask = mask & completions.finished.unsqueeze(-1)
    if algo.whiten.advantages:
        advantages = whiten(advantages, mask)
    stats["guard/dropped_completions"] = float((~usable).sum())
    return Targets(advantages, returns, mask, usable, stats)


def weighted(targets: Targets, rollout: Rollout, importance: Importance | None) -> Targets:
    """Advantages times what their tokens count for, when the sampler's probabilities are not the trainer's.

    The surrogate of w A is w times that of A, since w is not negative: so clips and ratios stay those of the trainer's
    own two policies. A KL term of the loss and a critic's targets are not weighted; a KL in the reward is in A.
    """
    if importance is None:
        return targets
    assert rollout.old_logprobs is not None
    mask = rollout.completions.mask & targets.usable.unsqueeze(-1)
    weights, acted = importance_weights(
        rollout.old_logprobs, rollout.completions.logprobs, mask, importance.level, importance.bound, importance.cap
    )
    stats = {
        "importance/mean": float(masked_mean(weights, targets.mask)),
        "importance/bounded": float(masked_mean(acted.float(), targets.mask)),
    }
    return replace(targets, advantages=targets.advantages * weights, stats={**targets.stats, **stats})


def _with_critic(rewards: Tensor, values: Tensor, mask: Tensor, cfg: Gae) -> tuple[Tensor, Tensor]:
    """Advantages, and the critic's targets: A + V, with a lambda of its own if it has one (VAPO, arXiv:2504.05118)."""
    advantages = gae(rewards, values, mask, cfg.gamma, cfg.lam)
    lam = cfg.lam if cfg.critic_lam is None else cfg.critic_lam
    critic = advantages if lam == cfg.lam else gae(rewards, values, mask, cfg.gamma, lam)
    return advantages, torch.where(mask, critic + values, torch.zeros_like(values))


def shaped_rewards(
    rollout: Rollout, algo: OnPolicy, memory: Memory, mask: Tensor, limit: int
) -> tuple[Tensor, dict[str, float]]:
    """What the advantages are made of: the score at the last token, less the KL at each token when it goes there.

        r_t = [t is the last token] score - coef kl_t

    -> [B, T] float32, 0 where mask is False
    """
    scores, stats = scored(rollout, algo, memory, limit)
    last = (rollout.completions.lengths - 1).unsqueeze(-1)
    token_rewards = scores.new_zeros(mask.shape).scatter(1, last, scores.unsqueeze(-1))
    if algo.kl.where == "reward":
        assert algo.kl.estimator and memory.kl_coef is not None
        assert rollout.old_logprobs is not None and rollout.reference_logprobs is not None
        estimator = kl_estimators.ESTIMATORS[algo.kl.estimator]
        token_rewards = token_rewards - memory.kl_coef * estimator(rollout.old_logprobs, rollout.reference_logprobs)
    token_rewards = torch.where(mask, token_rewards, torch.zeros_like(token_rewards))
    sums = token_rewards.sum(-1)[mask.any(-1)]
    return token_rewards, stats | {"reward/shaped": float(sums.mean()) if len(sums) else float("nan")}


def scored(rollout: Rollout, algo: OnPolicy, memory: Memory, limit: int) -> tuple[Tensor, dict[str, float]]:
    """Rewards as they enter the last token: normalised, clipped, then the rule for completions that were cut off.

        penalise:  r - penalty           ramp:  r - penalty clamp((T - (1 - ramp) limit) / (ramp limit), 0, 1)
        replace:   -penalty                     (DAPO's soft overlong punishment, arXiv:2503.14476, eq. 13)

    -> [B] float32
    """
    rewards, stats = rollout.rewards, dict[str, float]()
    if algo.scale.normalise != "none":
        stats = {"reward/scale_mean": memory.moments.mean, "reward/scale_std": memory.moments.std}
        rewards = (rewards - memory.moments.mean) / memory.moments.std
    if algo.scale.clip is not None:
        stats["reward/clipped"] = float((rewards.abs() > algo.scale.clip).float().mean())
        rewards = rewards.clamp(-algo.scale.clip, algo.scale.clip)
    rule, completions = algo.truncation, rollout.completions
    if rule.penalty is None:
        return rewards, stats
    if rule.mode == "penalise":
        return rewards - rule.penalty * (~completions.finished).float(), stats
    if rule.mode == "replace":
        return torch.where(completions.finished, rewards, torch.tensor(-rule.penalty)), stats
    assert rule.mode == "ramp" and rule.ramp is not None, rule.mode
    excess = (completions.lengths - (1 - rule.ramp) * limit) / (rule.ramp * limit)
    return rewards - rule.penalty * excess.clamp(0, 1), stats


def divergence(rollout: Rollout, mask: Tensor) -> float:
    """Nats per sequence from the policy that sampled to the reference, by k1, over what counts; NaN if nothing."""
    assert rollout.old_logprobs is not None and rollout.reference_logprobs is not None
    per_token = kl_estimators.k1(rollout.old_logprobs, rollout.reference_logprobs)
    return float(masked_sum(per_token, mask, -1)[mask.any(-1)].mean())


def _moments(name: str, values: Tensor, mask: Tensor) -> dict[str, float]:
    """Over all tokens of the rollout that count, before whitening."""
    return {f"{name}/mean": float(masked_mean(values, mask)), f"{name}/std": float(masked_var(values, mask).sqrt())}
