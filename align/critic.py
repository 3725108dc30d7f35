"""The critic, and everything that is trained behind one module.

An adapter critic is a second LoRA and a scalar head over the storage of the policy's base; a head critic reads the
hidden states of the policy's own pass. Either way a value is read where the policy predicts: V_t belongs to
the state before token t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align.forward import Batch, Scorer, backbone, completion_hidden, scatter
from align.models import Policy
from align.reward_model import FloatHead, RewardModel, build_reward_model, head_std
from align.schema import Critic, Model


class AdapterCritic(nn.Module):
    """A reward model read at every position instead of the last."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model  # PeftModel around a sequence classifier with one label

    def forward(self, batch: Batch) -> Tensor:
        """Values [B, T] float32, 0 where completion_mask is False."""
        hidden, _ = completion_hidden(self.model, batch)
        return scatter(self.model.get_base_model().score(hidden).squeeze(-1), batch.completion_mask)


class HeadCritic(nn.Module):
    """A scalar head on the policy's hidden states. Its loss reaches the policy's adapter, as in arXiv:1909.08593."""

    def __init__(self, width: int, device: torch.device):
        super().__init__()
        self.head = FloatHead(width, 1, bias=False, device=device)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[N, H] at the True positions of mask [B, T] -> values [B, T] float32"""
        return scatter(self.head(hidden).squeeze(-1), mask)


class Trained(nn.Module):
    """Policy and critic behind one forward, so that DDP wraps one module and keeps both in step over processes."""

    def __init__(self, policy: Scorer, critic: AdapterCritic | HeadCritic | None):
        super().__init__()
        self.policy = policy
        self.critic = critic

    def forward(self, batch: Batch, role: str = "policy") -> tuple[Tensor, ...]:
        """`policy`: logprobs, entropies and, from a head critic, values. `critic`: an adapter critic's values.

        One at a time, so that only one graph is held in memory. Each [B, T] float32.
        """
        if role == "critic":
            assert isinstance(self.critic, AdapterCritic)
            return (self.critic(batch),)
        if not isinstance(self.critic, HeadCritic):
            return self.policy(batch)
        hidden, targets = completion_hidden(self.policy.model, batch)
        mask = batch.completion_mask
        return (*self.policy.score(hidden, targets, mask), self.critic(hidden, mask))

    @property
    def two_passes(self) -> bool:
        return isinstance(self.critic, AdapterCritic)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters of each role; a role without any is left out."""
        found = {"policy": self.policy, "critic": self.critic}
        every = {name: [p for p in m.parameters() if p.requires_grad] for name, m in found.items() if m is not None}
        return {name: parameters for name, parameters in every.items() if parameters}


def build_critic(
    cfg: Critic, model: Model, policy: Policy, learned: RewardModel | None, seed: int
) -> AdapterCritic | HeadCritic:
    """A critic with its head at zero, random with std 1 / sqrt(h + 1), or a copy of the reward model, adapter and head.

    The adapter starts as the policy's does (B = 0) but for `init=reward`.
    """
    if cfg.kind == "head":
        width = backbone(policy.model).config.get_text_config().hidden_size
        critic: AdapterCritic | HeadCritic = HeadCritic(width, policy.device)
        weight = critic.head.weight
    else:
        built = build_reward_model(model, policy.reference, policy.tokenizer, seed).model
        critic = AdapterCritic(built)
        weight = built.get_base_model().score.modules_to_save["default"].weight
    with torch.no_grad():
        if cfg.init == "zero":
            weight.zero_()
        elif cfg.init == "random":
            generator = torch.Generator().manual_seed(seed)
            weight.copy_(torch.randn(weight.shape, generator=generator) * head_std(weight.shape[-1]))
        else:
            _copy_reward_model(critic, learned)
    return critic.eval()


def _copy_reward_model(critic: AdapterCritic | HeadCritic, learned: RewardModel | None) -> None:
    assert learned is not None, "the laws of the config ask for reward=learned"
    assert isinstance(critic, AdapterCritic)
    source = dict(learned.model.named_parameters())
    for name, parameter in critic.model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(source[name])
