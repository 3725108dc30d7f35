"""This project's side of a row: its own trainers, without probes, checkpoints and a run directory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from accelerate import Accelerator

from align.bench.inputs import Inputs, bench_reward, inputs
from align.bench.settings import Work
from align.bench.stamps import Stamps
from align.device import keep_freed_memory, resolve_device, resolve_dtype
from align.models import load_policy
from align.schema import Experiment
from align.stopping import Stop


def measure(experiment: Experiment, work: Work, stamps: Stamps) -> tuple[Any, Inputs]:
    """Train; `stamps` gets the time of every step. Returns the base's config and what was worked on."""
    keep_freed_memory()
    device = resolve_device(experiment.device)
    policy = load_policy(experiment.model, device, resolve_dtype(experiment.dtype, device), experiment.seed)
    given = inputs(work, policy.tokenizer)
    SIDES[work.kind](experiment, policy, given, stamps)
    return policy.reference.config, given


def _rollout(experiment: Experiment, policy: Any, given: Inputs, stamps: Stamps) -> None:
    from align.rewards import Rewards
    from align.trainers.on_policy import Hooks, OnPolicyTrainer

    rewards = Rewards({"bench": (1.0, lambda samples: bench_reward([s.completion_ids for s in samples]))})
    accelerator = Accelerator(cpu=policy.device.type == "cpu", mixed_precision="no")
    keeper: Any = SimpleNamespace(start=None, stop=Stop(), save=lambda *_: None)
    hooks = Hooks(stamps.log, lambda **_: None, lambda step: None, lambda *_, **__: None, keeper)
    lengths = {prompt.id: limits for prompt, (_, limits) in zip(given.prompts, given.groups, strict=True)}
    with forced_lengths(policy, lengths):
        trainer = OnPolicyTrainer(experiment, policy, rewards, accelerator)
        stamps.start()
        trainer.train(given.prompts, hooks)


@contextmanager
def forced_lengths(policy: Any, lengths: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Completions end at their recorded length and never before. `lengths`: prompt id -> tokens of each completion"""
    from align.trainers import on_policy

    free: Callable[..., Any] = on_policy.sample
    policy.stop_ids = ()

    @functools.wraps(free)
    def sample(policy: Any, prompts: Sequence[Any], *args: Any, **options: Any) -> Any:
        limits = [length for prompt in prompts for length in lengths[prompt.id]]
        return free(policy, prompts, *args, **options, limits=limits)

    on_policy.sample = sample
    try:
        yield
    finally:
        on_policy.sample = free


def _spoilt(kind: str, step: int, sentence: str, **details: Any) -> None:
    """Less memory than the work takes, and so other work than was to be timed."""
    raise RuntimeError(sentence)


def _opened(experiment: Experiment, stamps: Stamps) -> Any:
    return SimpleNamespace(experiment=experiment, log=stamps.log, event=_spoilt, keeper=None)


def _pairs(experiment: Experiment, policy: Any, given: Inputs, stamps: Stamps) -> None:
    from align.trainers.trl_runs import train_preference

    data: Any = SimpleNamespace(train_pairs=given.pairs)
    train_preference(_opened(experiment, stamps), policy, data, stamps.probe)


def _examples(experiment: Experiment, policy: Any, given: Inputs, stamps: Stamps) -> None:
    from align.trainers.trl_runs import train_sft

    data: Any = SimpleNamespace(demonstrations=given.demonstrations)
    train_sft(_opened(experiment, stamps), policy, data, stamps.probe)


def _reward(experiment: Experiment, policy: Any, given: Inputs, stamps: Stamps) -> None:
    from align.reward_model import build_reward_model
    from align.trainers.trl_runs import train_reward

    model = build_reward_model(experiment.model, policy.reference, policy.tokenizer, experiment.seed)
    data: Any = SimpleNamespace(train_pairs=given.pairs)
    train_reward(_opened(experiment, stamps), model, data, stamps.probe)


SIDES = {"rollout": _rollout, "pairs": _pairs, "examples": _examples, "reward": _reward}
