"""A rollout of the on-policy loop that never changes: eight completions of two prompts on the tiny Llama, their
rewards, and a trainer that is handed them instead of sampling. The algorithms are those of `conf/algo`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from torch import Tensor

from align.config import check
from align.data.tokens import encode_completion, encode_prompt
from align.models import Policy
from align.packing import right_pad
from align.records import Completions
from align.run import CONF
from align.schema import Experiment
from align.trainers import on_policy
from align.trainers.on_policy import OnPolicyTrainer
from align.trainers.prompts import PromptStream
from tests.trainers import tiny

LIMIT = 12  # tokens of a completion
PROMPTS = [tiny.prompt("Name a fruit."), tiny.prompt("2 + 2?")]
# Bytes and EOS: 10, 4, 12 without EOS, 2; 1 (nothing but EOS), 12 with EOS, 12 without, 7.
TEXTS = ["An apple.", "No.", "Fruits, fruit", "4"] + ["", "Five, yes..", "Two and two is", "I know"]
REWARDS = (0.3, -1.2, 0.9, 2.0, 1.0, 0.5, -0.4, 0.1)
LENGTHS = [10, 4, 12, 2, 1, 12, 12, 7]
FINISHED = [True, True, False, True, True, True, False, True]


def completions() -> Completions:
    rows = [encode_completion(tiny.TOKENIZER, text)[:LIMIT] for text in TEXTS]
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    ids, mask = right_pad(rows, tiny.TOKENIZER.pad_token_id, torch.device("cpu"))
    made = Completions(
        prompts=tuple(prompts),
        prompt_ids=tuple(tuple(encode_prompt(tiny.TOKENIZER, prompt)) for prompt in prompts),
        ids=ids,
        mask=mask,
        finished=torch.tensor([row[-1] == tiny.TOKENIZER.eos_token_id for row in rows]),
        logprobs=torch.zeros(mask.shape),  # nothing in training reads what the sampler thought
        texts=tuple(TEXTS),
    )
    assert made.lengths.tolist() == LENGTHS and made.finished.tolist() == FINISHED
    return made


def experiment(*overrides: str) -> Experiment:
    """One of `conf/algo` on two prompts with four completions each; gradients are not clipped."""
    settings = ["data=arithmetic", "model=tiny", "device=cpu", "dtype=float32", f"sampling.max_new_tokens={LIMIT}",
                "algo.prompts_per_step=2", "algo.group_size=4", "algo.micro_batch=2",
                "algo.optimizer.max_grad_norm=1e9"]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("run", overrides=[*settings, *overrides]))


def policy(moved: bool = True) -> Policy:
    """LoRA on the tiny Llama; `moved` is what it takes to have a KL to the reference."""
    made = tiny.lora_policy()
    if moved:
        move(made.model, 0.05, seed=1)
    return Policy(made.model, made.reference, made.tokenizer, (made.tokenizer.eos_token_id,), fingerprint="")


def move(model: torch.nn.Module, size: float, seed: int) -> None:
    """Noise on everything trainable, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


class Recorder:
    """Stands where the optimizer stood: keeps the gradients that reach it and changes nothing."""

    def __init__(self, model: torch.nn.Module):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradients: list[Tensor] = []

    def step(self) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class Fixed:
    """The loop on the fixed rollout: `collect`, `estimate` and `update` are the trainer's own."""

    def __init__(self, settings: Experiment, role: Policy, monkeypatch: Any, rewards: Sequence[float] = REWARDS):
        monkeypatch.setattr(on_policy, "sample", lambda *args: completions())
        given = torch.tensor(rewards)
        self.trainer = OnPolicyTrainer(settings, role, lambda _: (given, {}), Accelerator(cpu=True))
        self.learner = self.trainer.learner
        self.rollout, _ = self.trainer.collect(PromptStream(PROMPTS, len(PROMPTS), settings.seed), 0)
        self.targets = on_policy.estimate(self.rollout, settings.algo, self.trainer.memory, LIMIT)

    def update(self) -> dict[str, float]:
        return self.learner.update(self.rollout, self.targets, 0, self.trainer.memory.kl_coef)

    def gradients(self) -> tuple[dict[str, float], list[Tensor]]:
        """What an update logs, and the gradient of each of its optimizer steps. The weights stay as they are."""
        recorder = Recorder(self.trainer.policy.model)
        self.learner.optimizer = recorder
        recorder.zero_grad()
        stats = self.update()
        return stats, recorder.gradients


def watch(monkeypatch: Any, owner: Any, name: str) -> list[tuple]:
    """The arguments of every call of a function that goes on working."""
    calls: list[tuple] = []
    original: Callable[..., Any] = getattr(owner, name)

    def called(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(owner, name, called)
    return calls
