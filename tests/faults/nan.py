"""NaN where training could meet it: in a weight, in the logits of one position, in a reward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from align.rewards import Rewards
from reward_models.base import RewardSource


@contextmanager
def in_weights(moment: int) -> Iterator[list[int]]:
    """One entry of one trained tensor, behind the optimizer step `moment` (from 1)."""
    calls, step = list[int](), torch.optim.AdamW.step

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == moment:
            parameters = self.param_groups[0]["params"]
            with torch.no_grad():
                parameters[moment % len(parameters)].view(-1)[moment] = math.nan
        return done

    with patch.object(torch.optim.AdamW, "step", stepped):
        yield calls


@contextmanager
def in_logits(moment: int) -> Iterator[list[int]]:
    """What the decoder's pass `moment` gives for its last two positions: of their logits, whoever computes them."""
    from transformers.models.llama.modeling_llama import LlamaModel

    calls, forward = list[int](), LlamaModel.forward

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == moment:
            hidden = out.last_hidden_state
            mask = torch.zeros_like(hidden)
            mask[-1, -2:] = math.nan
            out.last_hidden_state = hidden + mask
        return out

    with patch.object(LlamaModel, "forward", poisoned):
        yield calls


def _spoilt(source: RewardSource) -> RewardSource:
    return lambda samples: [*list(source(samples))[:-1], math.nan]


@contextmanager
def in_rewards(moment: int) -> Iterator[list[int]]:
    """The last completion's, when rewards are asked for the `moment`-th time."""
    calls, rated = list[int](), Rewards.__call__

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == moment:
            self = replace(self, sources={name: (w, _spoilt(source)) for name, (w, source) in self.sources.items()})
        return rated(self, *args, **kwargs)

    with patch.object(Rewards, "__call__", poisoned):
        yield calls
