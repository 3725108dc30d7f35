"""Algorithms of `conf/algo`, and rollouts that nobody sampled: lengths and rewards are given, the prompts are empty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from align.records import Rollout, Targets
    from align.schema import OnPolicy


@cache
def algorithm(name: str, *overrides: str) -> OnPolicy:
    """conf/algo/NAME.yaml with overrides, checked as every run's."""
    from hydra import compose, initialize_config_dir

    from align.config import check
    from align.run import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("run", overrides=[f"algo={name}", *overrides])).algo


def made(
    lengths: Sequence[int],
    rewards: Sequence[float],
    old_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
) -> Rollout:
    """A rollout of finished completions of these lengths, in float64; logprobs [B, longest]."""
    import torch

    from align.records import Completions, Prompt, Rollout

    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    nobody = Prompt("", ({"role": "user", "content": ""},), "")
    B = len(lengths)
    completions = Completions(
        prompts=(nobody,) * B,
        prompt_ids=((0,),) * B,
        ids=torch.zeros(mask.shape, dtype=torch.long),
        mask=mask,
        finished=torch.ones(B, dtype=torch.bool),
        logprobs=torch.zeros(mask.shape),
        texts=("",) * B,
    )
    return Rollout(completions, torch.tensor(rewards, dtype=torch.float64), {}, old_logprobs, reference_logprobs)


def targets(rollout: Rollout, algo: OnPolicy, limit: int) -> Targets:
    """What the loop's estimator makes of it; `limit` is max_new_tokens."""
    from align.trainers import estimators

    return estimators.estimate(rollout, algo, estimators.Memory(algo.kl.coef), limit)


def gradient(logprobs: Tensor, rollout: Rollout, algo: OnPolicy, limit: int, of: Tensor) -> Tensor:
    """Gradient, with respect to `of`, of the loss of one optimizer step on the whole rollout; logprobs [B, T]."""
    import torch

    from align.maths.policy import Denominators
    from align.trainers import losses

    target = targets(rollout, algo, limit)
    denominators = Denominators(int(target.mask.sum()), len(logprobs), limit)
    loss, _, _ = losses.policy_loss(
        logprobs, None, rollout.reference_logprobs, target.advantages, target.mask, algo, algo.kl.coef, denominators
    )
    return torch.autograd.grad(loss, of, retain_graph=True)[0]
