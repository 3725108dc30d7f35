"""Prompts -> Completions, under one explicit sampling config.

The distribution is the model's at the given temperature, with nothing cut off: KL estimates and importance ratios are
about the distribution that is sampled from. Each (seed, prompt, sample) has its own stream of uniforms, one per
position, so a completion does not depend on what it is batched with (bit for bit in float32), and two policies probed
with one seed are compared under common random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from align.data.tokens import decode, encode_prompt
from align.forward import backbone, output_head
from align.models import Policy
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
    sample from that. Greedy takes the most likely token; its logprobs are still those of the distribution at T.
    `limits`: at most so many tokens of each completion, in their order, beside cfg.max_new_tokens."""
    model = policy.model if model is None else model
    encoded = {prompt.id: tuple(encode_prompt(policy.tokenizer, prompt)) for prompt in prompts}
    jobs = [(prompt, k) for prompt in prompts for k in range(samples)]
    order = sorted(range(len(jobs)), key=lambda i: len(encoded[jobs[i][0].id]))
    results: list[tuple[list[int], list[float]]] = [([], [])] * len(jobs)
    for start in range(0, len(order), cfg.rows):
        chosen = order[start : start + cfg.rows]
        uniforms = torch.stack([_uniforms(seed, jobs[i][0].id, jobs[i][1], cfg.max_new_tokens) for i in chosen])
        rows = [encoded[jobs[i][0].id] for i in chosen]
        ends = torch.tensor([cfg.max_new_tokens if limits is None else limits[i] for i in chosen])
        outcome = _decode(
            policy, model, rows, uniforms, ends, partial(pick, temperature=cfg.temperature, greedy=greedy)
        )
        for i, result in zip(chosen, outcome, strict=True):
            results[i] = result
    return _collect(policy, jobs, encoded, results)


@torch.no_grad()
def _decode(
    policy: Policy, model: Any, rows: list[tuple[int, ...]], uniforms: Tensor, ends: Tensor, choose: Callable[..., Any]
) -> list[tuple[list[int], list[float]]]:
    """Token by token with a KV cache; rows that have ended leave the batch. -> ids and logprobs of each row"""
    device = policy.device
    model.eval()
    ids, mask, unique = _left_pad_unique(rows, policy.tokenizer.pad_token_id, device)
    decoder, head = backbone(model), output_head(model)
    out = decoder(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True)
    cache = out.past_key_values
    cache.batch_select_indices(unique)  # each prompt is computed once, its cache is copied to its completions
    # indexed before the head: on a strided slice, matmul would copy the head's weight once per row (1.8 GB at 32 rows)
    logits, mask = head(out.last_hidden_state[:, -1].contiguous())[unique], mask[unique]
    position = mask.sum(-1, keepdim=True)
    uniforms, stops = uniforms.to(device), torch.tensor(policy.stop_ids, device=device)
    alive = torch.arange(len(rows), device=device)
    tokens: list[tuple[Tensor, Tensor, Tensor]] = []
    steps = uniforms.shape[1]
    for t in range(steps):
        chosen, logprobs = choose(logits, uniforms[alive, t])
        tokens.append((alive, chosen, logprobs))
        going = ~torch.isin(chosen, stops) & (ends.to(device)[alive] > t + 1)
        if t + 1 == steps or not going.any():
            break
        if not going.all():
            keep = going.nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, chosen, mask, position = alive[keep], chosen[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = decoder(
            input_ids=chosen.unsqueeze(-1),
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits, position = head(out.last_hidden_state[:, -1]), position + 1
    return _by_row(tokens, len(rows))


def pick(logits: Tensor, uniforms: Tensor, temperature: float, greedy: bool) -> tuple[Tensor, Tensor]:
    """One token of each row by inverting the cumulative distribution at its uniform.

    torch.multinomial over 49k tokens takes many times as long (docs/log.md).
    logits [B, V], uniforms [B] in [0, 1) -> tokens [B] int64, their logprobs [B] float32
    """
    probs = (logits.float() / temperature).softmax(-1)
    if greedy:
        tokens = logits.argmax(-1)
    else:
        cumulative = probs.cumsum(-1)
        # scaled by the actual total, so that rounding in the sum leaves no uniform past the end
        threshold = uniforms.unsqueeze(-1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
        tokens = tokens.clamp(max=probs.shape[-1] - 1)
    return tokens, probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log()


def _uniforms(seed: int, prompt_id: str, sample: int, count: int) -> Tensor:
    """The stream of one completion. [count] float32 in [0, 1)"""
    key = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") & (2**63 - 1))
    return torch.rand(count, generator=generator)


def _left_pad_unique(rows: list[tuple[int, ...]], pad: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct prompts, padded on the left. -> ids [U, P], mask [U, P] int64, index of each row's prompt [B]"""
    distinct = list(dict.fromkeys(rows))
    longest = max(len(row) for row in distinct)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in distinct], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in distinct], device=device)
    place = {row: i for i, row in enumerate(distinct)}
    return ids, mask, torch.tensor([place[row] for row in rows], device=device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _by_row(tokens: list[tuple[Tensor, Tensor, Tensor]], rows: int) -> list[tuple[list[int], list[float]]]:
    results: list[tuple[list[int], list[float]]] = [([], []) for _ in range(rows)]
    for alive, chosen, logprobs in tokens:
        for row, token, logprob in zip(alive.tolist(), chosen.tolist(), logprobs.tolist(), strict=True):
            results[row][0].append(token)
            results[row][1].append(logprob)
    return results


def _collect(
    policy: Policy,
    jobs: list[tuple[Prompt, int]],
    encoded: dict[str, tuple[int, ...]],
    results: list[tuple[list[int], list[float]]],
) -> Completions:
    width = max(len(ids) for ids, _ in results)
    shape = (len(jobs), width)
    ids = torch.full(shape, policy.tokenizer.pad_token_id, dtype=torch.long)
    logprobs, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for i, (row, row_logprobs) in enumerate(results):
        ids[i, : len(row)] = torch.tensor(row)
        logprobs[i, : len(row)] = torch.tensor(row_logprobs)
        mask[i, : len(row)] = True
    finished = torch.tensor([row[-1] in policy.stop_ids for row, _ in results])
    ended = zip(results, finished.tolist(), strict=True)
    texts = [decode(policy.tokenizer, row[:-1] if done else row) for (row, _), done in ended]
    return Completions(
        prompts=tuple(prompt for prompt, _ in jobs),
        prompt_ids=tuple(encoded[prompt.id] for prompt, _ in jobs),
        ids=ids,
        mask=mask,
        finished=finished,
        logprobs=logprobs,
        texts=tuple(texts),
    )
