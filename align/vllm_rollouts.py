"""Completions from vLLM servers: the adapter is sent, requests are shared out, what fails is asked again elsewhere.

A rollout is asked for in rounds. A round begins with the servers that are ready: they answer, have the adapter of these
very weights under the name of their hash, and gave logprobs of a short completion that are the trainer's. A request is
asked in a round only if no earlier one answered it, and a round ends when all of its requests have; so each completion
is there once, or the run fails. Servers are started, restarted and given adapters between rounds, by the main thread.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import torch

from align.data.tokens import encode_prompt
from align.embedded import sha256
from align.forward import Scorer, batch_of, causal_lm, score
from align.maths.masked import masked_mean
from align.models import Policy
from align.records import Completions, Prompt
from align.refusals import ConfigError
from align.sampling import completions_of
from align.schema import Experiment, Sampling
from align.seeds import derive
from align.vllm_client import Answer, Request, Server, ServerError
from align.vllm_server import OwnServer

QUICK = 60.0  # seconds for what is no completion
GOODBYE = 5.0  # seconds for that at the end, for which nobody wants to wait
PAUSE = 2.0  # seconds before a round that follows one in which something went wrong, at most PAUSE x rounds
CANARY = 16  # tokens of the completion that shows a server's weights


class RolloutError(RuntimeError):
    """No server gave the completions of a rollout; nothing was trained on its part."""


class ServedSampler:
    """Called as `align.sampling.sample` is. `folder`: for adapters, where the servers can read them."""

    def __init__(self, experiment: Experiment, policy: Policy, servers: Sequence[Server], folder: Path, canary: Prompt):
        assert experiment.sampling.vllm is not None
        self.cfg, self.vllm, self.policy = experiment.sampling, experiment.sampling.vllm, policy
        self.servers, self.folder = servers, folder
        run = hashlib.sha256(str(folder.parent).encode()).hexdigest()
        self.prefix = f"align-{run[:8]}-"  # of this run's adapters; others may use the servers too
        self.adapter: Path | None = None
        self.canary = Request(tuple(encode_prompt(policy.tokenizer, canary)), min(CANARY, self.cfg.max_new_tokens),
                              derive(experiment.seed, "canary"))  # fmt: skip
        self.scorer = Scorer(policy.model, self.cfg.temperature)
        self.vocabulary = len(causal_lm(policy.model).get_input_embeddings().weight)
        self.proven: dict[str, str] = {}  # address -> adapter with which its logprobs were the trainer's
        self.problems: list[str] = []

    def begin(self) -> None:
        """Raises ConfigError unless a server is ready: before the first step it is the user's to repair."""
        self.push()
        if not self.ready(set()):
            raise ConfigError("sampling.vllm: no server is ready:\n" + "\n".join(f"  {said}" for said in self.told()))

    def told(self) -> list[str]:
        """What went wrong since this was asked last, a sentence each."""
        said, self.problems = list(dict.fromkeys(self.problems)), []
        return said

    def __call__(
        self, policy: Policy, prompts: Sequence[Prompt], samples: int, cfg: Sampling, seed: int
    ) -> Completions:
        """`samples` completions of each prompt, prompt-major. Raises RolloutError."""
        assert policy is self.policy
        encoded = {prompt.id: tuple(encode_prompt(policy.tokenizer, prompt)) for prompt in prompts}
        jobs = [(prompt, k) for prompt in prompts for k in range(samples)]
        requests = [Request(encoded[p.id], cfg.max_new_tokens, derive(seed, p.id, k)) for p, k in jobs]
        self.push()
        answers = self.answered(requests)
        return completions_of(policy, [prompt for prompt, _ in jobs], [r.prompt for r in requests], *tensors(answers))

    def push(self) -> None:
        """Write the adapter as it is now under the name of its contents; servers take it up when they are prepared."""
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        self.policy.model.save_pretrained(fresh)
        target = self.folder / (self.prefix + sha256(fresh / "adapter_model.safetensors")[:12])
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        if self.adapter not in (None, target):
            shutil.rmtree(self.adapter, ignore_errors=True)
        self.adapter = target

    def answered(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer to each request, in their order."""
        found = dict[int, Answer]()
        failed = set[str]()
        for attempt in range(self.vllm.retries + 1):
            time.sleep(PAUSE * attempt)
            missing = [i for i in range(len(requests)) if i not in found]
            ready = self.ready(failed)
            if ready:
                new, failed = self.round({i: requests[i] for i in missing}, ready)
                assert not new.keys() & found.keys()
                found |= new
            if len(found) == len(requests):
                return [found[i] for i in range(len(requests))]
        raise RolloutError(
            f"{len(requests) - len(found)} of {len(requests)} completions could not be had from the vLLM servers in "
            f"{self.vllm.retries + 1} attempts (sampling.vllm.retries); nothing was trained on this rollout. They "
            "said:\n" + "\n".join(f"  {problem}" for problem in self.told())
        )

    def ready(self, failed: set[str]) -> list[Server]:
        """The servers that are ready; those that just failed only if there is no other."""
        for again in (False, True):
            found = [s for s in self.servers if (s.url in failed) is again and self.prepared(s)]
            if found:
                return found
        return []

    def prepared(self, server: Server) -> bool:
        """Whether it answers and has these weights, which it is given where it has others."""
        assert self.adapter is not None
        name, seconds = self.adapter.name, min(QUICK, self.vllm.seconds)
        try:
            if isinstance(server, OwnServer) and not server.alive:
                self.problems.append(f"the run's vLLM server ended; it is started again (it said: {server.log})")
                server.start()
            served = server.models(seconds)
            if name not in served:
                self.proven.pop(server.url, None)
                self.load(server, name)
            if self.proven.get(server.url) != name:
                self.prove(server, name)
            for old in served:
                if old.startswith(self.prefix) and old != name:
                    with suppress(ServerError):  # another process of the run was faster; or it is seen again next time
                        server.unload(old, seconds)
        except ServerError as error:
            self.problems.append(str(error))
            if isinstance(server, OwnServer):
                server.settle()
            return False
        return True

    def load(self, server: Server, name: str) -> None:
        try:
            server.load(name, str(self.adapter), self.vllm.seconds)
        except ServerError:
            if name not in server.models(self.vllm.seconds):  # as above
                raise

    def prove(self, server: Server, name: str) -> None:
        """Raises ServerError when its logprobs of a short completion are not the trainer's: its weights are others."""
        answer = self.completed(server, name, self.canary, ())  # of one or two tokens any server could be right
        nobody = Prompt("canary", ({"role": "user", "content": ""},), "")
        completion = completions_of(self.policy, [nobody], [self.canary.prompt], *tensors([answer]))
        batch = batch_of(completion, self.policy.tokenizer.pad_token_id, self.policy.device)
        trainers = score(self.scorer, batch)[0].cpu()
        gap = float(masked_mean((trainers - completion.logprobs).abs(), completion.mask))
        if not gap <= self.vllm.gap:
            raise ServerError(f"{server.url} has other weights than the trainer: logprobs of {len(answer.ids)} tokens "
                              f"differ by {gap:.3g} nats on average (sampling.vllm.gap={self.vllm.gap:g})")  # fmt: skip
        self.proven[server.url] = name

    def completed(self, server: Server, name: str, request: Request, stop_ids: tuple[int, ...]) -> Answer:
        """Raises ServerError."""
        answer = server.complete(name, request, self.cfg.temperature, stop_ids, self.vllm.seconds)
        if max(answer.ids) >= self.vocabulary:
            raise ServerError(f"{server.url} has another model than the trainer: it answered with token "
                              f"{max(answer.ids)} of {self.vocabulary}")  # fmt: skip
        return answer

    def round(self, requests: Mapping[int, Request], ready: Sequence[Server]) -> tuple[dict[int, Answer], set[str]]:
        """Every request asked once, each server for a share of neighbours, which have prompts in common.

        -> the answers there are, and the addresses of servers that failed. One that fails is asked nothing more.
        """
        assert self.adapter is not None
        name, found, failed = self.adapter.name, dict[int, Answer](), dict[str, str]()

        def ask(server: Server, request: Request) -> Answer | None:
            if server.url in failed:
                return None
            return self.completed(server, name, request, self.policy.stop_ids)

        pool = ThreadPoolExecutor(min(self.cfg.rows, len(requests)))
        try:
            shares = {pool.submit(ask, server, requests[i]): (i, server) for i, server in in_turn(requests, ready)}
            for future in as_completed(shares):
                i, server = shares[future]
                try:
                    answer = future.result()
                except ServerError as error:
                    failed.setdefault(server.url, str(error))
                    continue
                if answer is not None:
                    found[i] = answer
        except BaseException:  # Ctrl-C, or the run was told to end: nobody waits for the rest
            pool.shutdown(wait=False, cancel_futures=True)
            for server in ready:
                server.abort()
            raise
        pool.shutdown()
        self.problems += failed.values()
        return found, set(failed)

    def close(self) -> None:
        """Leave servers that go on as they were, as far as they answer."""
        for server in self.servers:
            server.abort()  # again: a second signal may have come while a round was given up
            if isinstance(server, OwnServer):
                continue
            with suppress(ServerError):  # it is gone, and what it had with it
                for name in server.models(GOODBYE):
                    if name.startswith(self.prefix):
                        server.unload(name, GOODBYE)
        shutil.rmtree(self.folder, ignore_errors=True)


def in_turn(requests: Iterable[int], ready: Sequence[Server]) -> list[tuple[int, Server]]:
    """Each server a share of neighbours, asked in turn: with fewer threads than requests none waits for the others."""
    numbers, many = list(requests), len(ready)
    shares = [numbers[len(numbers) * k // many : len(numbers) * (k + 1) // many] for k in range(many)]
    return [
        (i, server) for turn in zip_longest(*shares) for i, server in zip(turn, ready, strict=True) if i is not None
    ]


def tensors(answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> ids [B, T] int64, logprobs [B, T] float32, lengths [B]; 0 behind the end"""
    lengths = [len(answer.ids) for answer in answers]
    width = max(lengths)
    ids = torch.tensor([[*answer.ids, *[0] * (width - n)] for answer, n in zip(answers, lengths, strict=True)])
    logprobs = torch.tensor([[*a.logprobs, *[0.0] * (width - n)] for a, n in zip(answers, lengths, strict=True)])
    return ids, logprobs, torch.tensor(lengths)
