"""The servers of a run: found or started before its first step, asked by the main process, left or ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from align.models import Policy, locate
from align.records import Completions, Prompt
from align.rollouts import from_main
from align.schema import Experiment
from align.stopping import Stop, Terminated
from align.vllm_client import Server
from align.vllm_laws import RANKS, key_of
from align.vllm_rollouts import ServedSampler
from align.vllm_server import OwnServer

BASE = "base"  # what a server of the run's own calls its model


class GivenUp(Exception):
    """The run was told to end while servers sampled: there is no rollout, and nothing was trained on its part."""


class OnMain:
    """Called as `align.sampling.sample` is, on every process. The main one asks the servers, for all: the work is
    theirs, it alone can start its own again, and what went wrong is said by it."""

    def __init__(self, accelerator: Accelerator, sampler: ServedSampler | None):
        self.accelerator, self.sampler = accelerator, sampler

    def __call__(self, stop: Stop, *asked: Any) -> Completions:
        """Raises GivenUp, on every process, when the main one is told to end: servers that hang would outlast the time
        until it is killed."""

        def ask() -> Completions | None:
            assert self.sampler is not None
            with suppress(Terminated), stop.breakable():
                return self.sampler(*asked)
            return None

        completions: Completions | None = from_main(self.accelerator, ask)
        if completions is None:
            raise GivenUp
        return completions

    def told(self) -> list[str]:
        return self.sampler.told() if self.sampler else []


@contextmanager
def served(
    experiment: Experiment,
    policy: Policy,
    accelerator: Accelerator,
    path: Path,
    canary: Prompt,
    starting: AbstractContextManager[None],
) -> Iterator[OnMain | None]:
    """The sampler of a run in `path` whose completions come from servers, and its own server while it lasts; None when
    they do not. `canary`: a prompt that shows what weights a server has; `starting`: entered until servers are ready,
    which takes its time. Raises ConfigError when none is."""
    vllm = experiment.sampling.vllm
    if vllm is None:
        yield None
        return
    own: OwnServer | None = None
    sampler: ServedSampler | None = None

    def ready() -> None:
        nonlocal own, sampler
        servers: list[Server] = [Server(url, key_of(os.environ.get("VLLM_API_KEY"))) for url in vllm.urls]
        if not servers:
            assert vllm.python is not None
            own = OwnServer(vllm.python, arguments(experiment, policy, path), path / "vllm.log")
            own.begin()
            servers = [own]
        sampler = ServedSampler(experiment, policy, servers, path.resolve() / "sent", canary)
        sampler.begin()

    try:
        with starting:
            from_main(accelerator, ready)
        yield OnMain(accelerator, sampler)
    finally:
        if sampler is not None:
            sampler.close()
        if own is not None:
            own.stop()


def arguments(experiment: Experiment, policy: Policy, path: Path) -> list[str]:
    """Of a server that samples this run's policy as the trainer would."""
    sampling, lora = experiment.sampling, experiment.model.lora
    assert sampling.vllm is not None and lora is not None
    base = locate(experiment.model.path)
    if policy.started:  # merged from an earlier run: no folder has it but the one that Policy.save would write
        base = str(path / "start")
        policy.reference.save_pretrained(base)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(base)
    dtype = str(next(policy.reference.parameters()).dtype).removeprefix("torch.")
    rank = next(rank for rank in RANKS if rank >= lora.rank)
    # vLLM 0.32 takes back the random number of a prompt that it has read in part only. A CPU's generator cannot: "CPU
    # Generator does not use offset" ended the server when a rollout's prompts were more tokens than it takes at once
    whole = ["--no-enable-chunked-prefill"] if policy.device.type == "cpu" else []
    return [
        *("--model", base, "--served-model-name", BASE, "--dtype", dtype),
        *("--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "1", "--max-cpu-loras", "2"),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *("--max-num-seqs", str(sampling.rows), *whole, *sampling.vllm.arguments),
    ]
