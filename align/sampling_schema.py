"""The group `sampling`, which is several: how completions are sampled, by whom, and what they count for."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class Importance:
    level: str = MISSING
    bound: str = MISSING
    cap: float = MISSING


@dataclass
class Vllm:
    urls: list[str] = MISSING  # of servers that run; none: the run starts its own
    python: str | None = MISSING  # of the environment that has vLLM, for a server of the run's own
    arguments: list[str] = MISSING  # of that server, further ones
    seconds: float = MISSING  # that a request may take
    retries: int = MISSING  # of what no server answered
    gap: float = MISSING  # nats per token between sampler and trainer


@dataclass
class Sampling:
    temperature: float = MISSING
    top_k: int | None = MISSING
    top_p: float | None = MISSING
    min_p: float | None = MISSING
    max_new_tokens: int = MISSING
    rows: int = MISSING
    lora: str = MISSING
    vllm: Vllm | None = MISSING  # None: sampled in this process
    importance: Importance | None = MISSING
