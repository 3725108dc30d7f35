"""Every config group: names and types only. Values live in `conf/`, the laws between fields in `laws.py`. Every field
is mandatory: a value that is not written in `conf/` or on the command line does not exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from align.sampling_schema import Importance, Sampling, Vllm

__all__ = ["Importance", "Sampling", "Vllm"]  # named as if they stood here


@dataclass
class Lora:
    rank: int = MISSING
    alpha: float = MISSING
    dropout: float = MISSING
    targets: Any = MISSING  # "all-linear" or a list of module names
    init: str = MISSING
    rslora: bool = MISSING
    dora: bool = MISSING


@dataclass
class Model:
    name: str = MISSING
    path: str = MISSING  # embedded | tiny | a hub id | a folder | a .gguf file
    start: str | None = MISSING  # a run whose weights are the start, and so the reference
    lora: Lora | None = MISSING  # None: full fine-tuning
    quant: str | None = MISSING  # of the frozen base


@dataclass
class PoolSettings:
    samples: int = MISSING
    max_new_tokens: int = MISSING
    temperature: float = MISSING
    path: str | None = MISSING


@dataclass
class Labels:
    pairs: int = MISSING
    annotators: int = MISSING
    sharpness: float = MISSING
    flips: float = MISSING
    length_bias: float = MISSING
    similarity: list[float] | None = MISSING  # lowest, highest quantile
    seed: int = MISSING


@dataclass
class AnnotatorData:
    kind: str = MISSING
    name: str = MISSING
    pool: PoolSettings = MISSING
    labels: Labels = MISSING


@dataclass
class ArithmeticData:
    kind: str = MISSING
    name: str = MISSING
    task: str = MISSING  # sum | the name of a reasoning_gym dataset
    terms: int = MISSING
    low: int = MISSING
    high: int = MISSING
    train: int = MISSING
    heldout: int = MISSING


@dataclass
class JsonlData:
    kind: str = MISSING
    name: str = MISSING
    path: str = MISSING
    heldout: float = MISSING
    max_prompt_tokens: int | None = MISSING
    max_completion_tokens: int | None = MISSING


@dataclass
class HubData:
    kind: str = MISSING
    name: str = MISSING
    repo: str = MISSING  # a hub id
    revision: str | None = MISSING  # None: the newest
    folders: list[str] = MISSING  # of the repository: where the splits' files lie
    train_split: str = MISSING
    heldout_split: str = MISSING
    columns: list[str] = MISSING
    path: str | None = MISSING  # a local copy; None: the hub's cache, then the hub
    train: int | None = MISSING
    heldout: int = MISSING
    max_prompt_tokens: int | None = MISSING
    max_completion_tokens: int | None = MISSING


@dataclass
class Optimizer:
    lr: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    schedule: str = MISSING
    warmup_steps: int = MISSING


@dataclass
class RewardTraining:
    kind: str = MISSING
    name: str = MISSING
    pairs_per_step: int = MISSING
    micro_batch: int = MISSING
    center: float | None = MISSING
    optimizer: Optimizer = MISSING


@dataclass
class Sft:
    kind: str = MISSING
    name: str = MISSING
    examples_per_step: int = MISSING
    micro_batch: int = MISSING
    optimizer: Optimizer = MISSING


@dataclass
class Preference:
    kind: str = MISSING
    name: str = MISSING
    loss: str = MISSING
    beta: float = MISSING
    label_smoothing: float | None = MISSING
    length_alpha: float | None = MISSING
    ld_alpha: float | None = MISSING
    gamma: float | None = MISSING
    desirable_weight: float | None = MISSING
    undesirable_weight: float | None = MISSING
    pairs_per_step: int = MISSING
    micro_batch: int = MISSING
    optimizer: Optimizer = MISSING


@dataclass
class BestOfN:
    kind: str = MISSING
    name: str = MISSING


@dataclass
class Tempered:
    kind: str = MISSING
    name: str = MISSING
    temperatures: list[float] = MISSING  # of each step, the first is 1
    top_ps: list[float] | None = MISSING  # likewise; None: nothing is cut off


@dataclass
class Kl:
    where: str = MISSING
    estimator: str | None = MISSING
    coef: float | None = MISSING  # with a target: where it starts
    target_nats_per_sequence: float | None = MISSING
    horizon_completions: float | None = MISSING


@dataclass
class Ratio:
    level: str = MISSING
    clip_low: float | None = MISSING
    clip_high: float | None = MISSING
    clip_dual: float | None = MISSING


@dataclass
class Truncation:
    mode: str = MISSING
    penalty: float | None = MISSING
    ramp: float | None = MISSING  # share of the limit over which a penalty grows


@dataclass
class Scale:
    normalise: str = MISSING
    clip: float | None = MISSING


@dataclass
class Whiten:
    rewards: bool = MISSING
    advantages: bool = MISSING


@dataclass
class Gae:
    gamma: float = MISSING
    lam: float = MISSING
    critic_lam: float | None = MISSING  # None: lam


@dataclass
class Critic:
    kind: str = MISSING
    init: str = MISSING
    coef: float = MISSING
    clip: float | None = MISSING
    lr: float = MISSING
    warmup_steps: int = MISSING


@dataclass
class OnPolicy:
    kind: str = MISSING
    name: str = MISSING
    prompts_per_step: int = MISSING
    group_size: int = MISSING
    max_draws: int = MISSING  # batches of prompts that may be drawn to replace groups without a signal; 1: none is
    advantage: str = MISSING
    gae: Gae | None = MISSING
    critic: Critic | None = MISSING
    scale: Scale = MISSING
    whiten: Whiten = MISSING
    kl: Kl = MISSING
    ratio: Ratio = MISSING
    aggregate: str = MISSING
    truncation: Truncation = MISSING
    epochs: int = MISSING
    minibatches: int = MISSING
    micro_batch: int | None = MISSING
    micro_batch_tokens: int = MISSING
    optimizer: Optimizer = MISSING


@dataclass
class LearnedReward:
    run: str | None = MISSING  # a finished `algo=reward` run; None: found by fingerprint, or trained first
    steps: int = MISSING
    algo: RewardTraining = MISSING


@dataclass
class Reward:
    formula: str = MISSING  # "learned - 0.01*length", or "none"
    learned: LearnedReward | None = MISSING


@dataclass
class Probe:
    every: int = MISSING
    prompts: int = MISSING
    samples: int = MISSING
    pairs: int = MISSING
    train_pairs: int | None = MISSING
    greedy: bool = MISSING


@dataclass
class Guard:
    nonfinite: str = MISSING
    log_ratio: float = MISSING
    kl_nats_per_sequence: float = MISSING


@dataclass
class Checkpoint:
    every: int = MISSING
    keep: int = MISSING


@dataclass
class Experiment:
    algo: Any = MISSING
    model: Model = MISSING
    data: Any = MISSING
    reward: Reward = MISSING
    probe: Probe = MISSING
    sampling: Sampling = MISSING
    guard: Guard = MISSING
    checkpoint: Checkpoint = MISSING
    seed: int = MISSING
    steps: int = MISSING
    run_dir: str | None = MISSING
    runs_root: str = MISSING
    resume: bool = MISSING
    device: str = MISSING
    dtype: str = MISSING
    tracker: str = MISSING
    reward_seconds: float | None = MISSING
