"""A policy on the tiny model, moved as if it had been trained, and the sampler that asks fakes for its completions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from align.forward import Scorer, batch_of, score
from align.models import Policy, load_policy
from align.records import Completions
from align.vllm_client import Server
from align.vllm_rollouts import ServedSampler
from reward_models.base import Sample
from tests.config.test_conf import composed
from tests.invariants.families import PROMPTS, STOPS
from tests.vllm.fake import Fake

SMALL = ("model=tiny", "data=arithmetic", "device=cpu", "dtype=float32", "tracker=none", "sampling=vllm",
         "sampling.max_new_tokens=8", "sampling.vllm.seconds=5")  # fmt: skip


def seldom(samples: Sequence[Sample]) -> list[float]:
    """A draw from the global random stream, which most groups of four have alike: dynamic sampling draws again."""
    return [float(random.random() < 0.1) for _ in samples]


def at(*fakes: Fake) -> list[str]:
    return [f"sampling.vllm.urls=[{','.join(fake.url for fake in fakes)}]"]


def policy() -> Policy:
    """Some of its completions end and some reach the limit."""
    settings = composed(*SMALL, "sampling.vllm.urls=[http://a]")
    made = load_policy(settings.model, torch.device("cpu"), torch.float32, 0)
    move(made, 0.3)
    return replace(made, stop_ids=STOPS)


def move(role: Policy, size: float, seed: int = 2) -> None:
    """An update of the adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def sampler(root: Path, role: Policy, *fakes: Fake, overrides: tuple[str, ...] = ()) -> ServedSampler:
    experiment = composed(*SMALL, *at(*fakes), *overrides)
    servers = [Server(fake.url, fake.key) for fake in fakes]
    return ServedSampler(experiment, role, servers, root / "sent", PROMPTS[0])


def ask(made: ServedSampler, seed: int = 0, samples: int = 4, **others: Any) -> Completions:
    return made(made.policy, PROMPTS, samples, made.cfg, seed)


def gap(role: Policy, completions: Completions, temperature: float = 1.0) -> float:
    """Largest difference between the logprobs and those of the scoring pass."""
    batch = batch_of(completions, role.tokenizer.pad_token_id, role.device)
    return float((score(Scorer(role.model, temperature), batch)[0] - completions.logprobs).abs().max())
