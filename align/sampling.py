"""Prompts -> Completions, under one explicit sampling config.

The distribution is the model's at the given temperature, with nothing cut off unless the config says so: KL estimates
and importance ratios are about the distribution that is sampled from. Each (seed, prompt, sample) has its own stream of
noise, some numbers per position, so a completion does not depend on what it is batched with (bit for bit in float32),
and two policies probed with one seed are compared under common random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from align.attention import DECODED, attending
from align.data.tokens import decode, encode_prompt
from align.decoding import NAME as DECODING
from align.decoding import Cache
from align.embedded import ModelError
from align.forward import backbone, causal_lm, output_head
from align.maths.draw import draw, noise_of, noise_size, warp
from align.merged import Merged
from align.models import Policy
from align.packing import groups_of, pack
from align.records import Completions, Prompt
from align.schema import Sampling


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    samples: int,
    cfg: Sampling,
    seed: int,
    *,
    model: Any = None,
    greedy: bool = False,
    limits: Sequence[int] | None = None,
) -> Completions:
    """`samples` completions of each prompt, prompt-major. `model` defaults to the policy's; pass the reference's to
    sample from that. Greedy takes the most likely token; its logprobs are still those of the distribution. `limits`:
    of each completion's tokens, where it is lower than cfg.max_new_tokens."""
    encoded = {prompt.id: tuple(encode_prompt(policy.tokenizer, prompt)) for prompt in prompts}
    jobs = [(prompt, k) for prompt in prompts for k in range(samples)]
    bounds = [cfg.max_new_tokens] * len(jobs) if limits is None else [min(n, cfg.max_new_tokens) for n in limits]
    asked = [
        Job(encoded[prompt.id], None if greedy else (seed, prompt.id, k), limit)
        for (prompt, k), limit in zip(jobs, bounds, strict=True)
    ]
    decoded = _Decoding(policy, policy.model if model is None else model, cfg, asked).run()
    return completions_of(policy, [prompt for prompt, _ in jobs], [job.prompt for job in asked], *decoded)


def completions_of(
    policy: Policy,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[tuple[int, ...]],
    ids: Tensor,
    logprobs: Tensor,
    lengths: Tensor,
) -> Completions:
    """What was sampled, as a record: ids and logprobs [B, T], lengths [B], whatever stands behind them."""
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(-1)
    last = ids.gather(1, lengths.unsqueeze(-1) - 1).squeeze(-1)
    finished = torch.isin(last, torch.tensor(policy.stop_ids, dtype=torch.long))
    ends = (lengths - finished.long()).tolist()
    return Completions(
        prompts=tuple(prompts),
        prompt_ids=tuple(prompt_ids),
        ids=ids.masked_fill(~mask, policy.tokenizer.pad_token_id),
        mask=mask,
        finished=finished,
        logprobs=logprobs.masked_fill(~mask, 0.0),
        texts=tuple(decode(policy.tokenizer, row[:end]) for row, end in zip(ids.tolist(), ends, strict=True)),
    )


class Job(NamedTuple):
    """A completion to be sampled."""

    prompt: tuple[int, ...]
    stream: tuple[int, str, int] | None  # of its noise; None: greedily
    limit: int  # tokens


class _Decoding:
    """Some rows at a time, token by token. One that has ended is dropped when a quarter have, since dropping copies
    caches; waiting prompts come in when a quarter of the rows is free, since their pass costs as much as a step."""

    def __init__(self, policy: Policy, model: Any, cfg: Sampling, jobs: list[Job]):
        self.cfg, self.jobs, self.device = cfg, jobs, policy.device
        self.copy = decoding_copy(model, merge=cfg.lora == "merged")
        self.decoder, self.head = backbone(self.copy.lm), output_head(self.copy.lm)
        family = self.decoder.config.model_type
        if family not in DECODED:  # a cache of another kind would be wrong without a word
            raise ModelError(f"model.path: completions of a {family} model cannot be sampled; use {', '.join(DECODED)}")
        steps = max(job.limit for job in jobs)
        self.rows = min(cfg.rows, len(jobs))
        self.cache = Cache(steps, self.device)
        self.waiting = _groups(jobs, self.rows)
        self.stops = torch.tensor(policy.stop_ids, dtype=torch.long, device=self.device)
        self.limits = torch.tensor([job.limit for job in jobs] + [steps], device=self.device)
        shape = (len(jobs) + 1, steps)  # what rows that have ended go on to produce lands in the last row
        self.ids = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(shape, device=self.device)
        self.lengths = torch.zeros(len(jobs) + 1, dtype=torch.long, device=self.device)
        nobody = torch.zeros(0, dtype=torch.long, device=self.device)
        self.job, self.count, self.last = nobody, nobody, nobody  # [R] of each row; its tokens so far
        self.noise: Tensor | None = None  # [R, steps, noise_size]

    @torch.no_grad()
    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """-> ids and logprobs [jobs, longest], lengths [jobs], on the CPU"""
        with attending(self.decoder, DECODING):
            while True:
                self.drop()
                if self.waiting and self.free >= max(self.rows / 4, len(self.waiting[0])):
                    self.admit()
                elif len(self.job):
                    self.step()
                else:
                    break
        lengths = self.lengths[:-1].cpu()
        longest = int(lengths.max())
        return self.ids[:-1, :longest].cpu(), self.logprobs[:-1, :longest].cpu(), lengths

    @property
    def free(self) -> int:
        return self.rows - len(self.job)

    def admit(self) -> None:
        """The prompts whose completions there is room for, and their first tokens."""
        groups = list[list[int]]()
        while self.waiting and sum(map(len, groups)) + len(self.waiting[0]) <= self.free:
            groups.append(self.waiting.pop(0))
        prompts = [self.jobs[group[0]].prompt for group in groups]
        distinct = list(dict.fromkeys(prompts))
        row = pack(distinct, [(0,)] * len(distinct), self.device)  # of one token, whichever: it is left out
        kept: list[tuple[Tensor, Tensor]] = []
        hidden = row.hidden(self.decoder, use_cache=False, keep=kept)[row.predicting]
        spans = dict(zip(distinct, (block.rows for block in row.blocks), strict=True))
        self.cache.admit(kept, [spans[prompt] for prompt in prompts], [len(group) for group in groups])
        fresh = [i for group in groups for i in group]
        before = len(self.job)
        new = torch.tensor(fresh, device=self.device)
        self.job = torch.cat([self.job, new])
        self.count = torch.cat([self.count, torch.zeros_like(new)])
        self.last = torch.cat([self.last, torch.zeros_like(new)])
        logits = self.head(hidden)
        self._draw_noise(fresh, logits.shape[-1])
        of_row = [distinct.index(self.jobs[i].prompt) for i in fresh]
        self.choose(logits[torch.tensor(of_row, device=self.device)], slice(before, None))

    def step(self) -> None:
        positions = self.cache.begin()
        hidden = self.decoder(
            input_ids=self.last.unsqueeze(-1), position_ids=positions, use_cache=False, cache=self.cache
        ).last_hidden_state[:, 0]
        self.cache.advance(self.going)
        self.choose(self.head(hidden), slice(None))

    def choose(self, logits: Tensor, rows: slice) -> None:
        """The next token of these rows."""
        cfg, job, count = self.cfg, self.job[rows], self.count[rows]
        noise = None
        if self.noise is not None:
            at = torch.arange(len(self.job), device=self.device)[rows]
            noise = self.noise[at, count.clamp(max=self.noise.shape[1] - 1)]
        tokens, logprobs = draw(warp(logits, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p), noise)
        column = count.clamp(max=self.ids.shape[1] - 1)
        self.ids[job, column], self.logprobs[job, column] = tokens, logprobs
        now = count + 1
        ended = torch.isin(tokens, self.stops) | (now >= self.limits[job])
        self.lengths[job] = now
        self.last[rows], self.count[rows] = tokens, now
        self.job[rows] = job.masked_fill(ended, len(self.jobs))

    @property
    def going(self) -> Tensor:
        return self.job < len(self.jobs)

    def drop(self) -> None:
        going = self.going
        rows, left = len(going), int(going.sum())
        if left == rows or (left and 4 * (rows - left) < rows):
            return
        keep = going.nonzero().squeeze(-1)
        self.cache.keep(keep)
        self.job, self.count, self.last = self.job[keep], self.count[keep], self.last[keep]
        self.noise = None if self.noise is None else self.noise[keep]

    def _draw_noise(self, fresh: list[int], vocabulary: int) -> None:
        """[R, steps, noise_size(vocabulary)]: for 64 rows of 128 positions 4 MB."""
        streams = [self.jobs[i].stream for i in fresh]
        if streams[0] is None:
            return
        steps, size = self.ids.shape[1], noise_size(vocabulary)
        new = torch.stack([noise_of(*stream, steps, size) for stream in streams if stream]).to(self.device)
        self.noise = new if self.noise is None else torch.cat([self.noise, new])


def _groups(jobs: list[Job], most: int) -> list[list[int]]:
    """Jobs that share a prompt, at most `most` together; prompts of similar length follow each other."""
    together = groups_of([job.prompt for job in jobs])
    groups = [group[i : i + most] for group in together for i in range(0, len(group), most)]
    return sorted(groups, key=lambda group: len(jobs[group[0]].prompt))


_copies: WeakKeyDictionary[Any, dict[bool, Merged]] = WeakKeyDictionary()


def decoding_copy(model: Any, merge: bool) -> Merged:
    """The copy that this model is sampled from, made once and brought up to date."""
    made = _copies.setdefault(model, {})
    if merge not in made:
        made[merge] = Merged(causal_lm(model), merge)
    made[merge].refresh()
    return made[merge]
