"""What the ruler reads off completions: pure functions from tensors and tokens to the keys of `docs/metrics.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from align.forward import Divergence
from align.maths.kl import k1, k3
from align.maths.masked import masked_mean, masked_sum
from align.maths.text import distinct, repeated, self_bleu
from align.records import Completions


def kl_metrics(found: Divergence, mask: Tensor) -> dict[str, float]:
    return {
        "kl/k1": float(masked_sum(k1(found.logprobs, found.reference_logprobs), mask, -1).mean()),
        "kl/k3": float(masked_mean(k3(found.logprobs, found.reference_logprobs), mask)),
        "kl/exact": float(masked_sum(found.exact_kl, mask, -1).mean()),
        "policy/entropy": float(masked_mean(found.entropy, mask)),
    }


def kl_fields(found: Divergence, mask: Tensor) -> dict[str, Tensor]:
    """The same for each completion: KL over its tokens, entropy per token. [B] each"""
    return {
        "kl": masked_sum(k1(found.logprobs, found.reference_logprobs), mask, -1).cpu(),
        "kl_exact": masked_sum(found.exact_kl, mask, -1).cpu(),
        "entropy": masked_mean(found.entropy, mask, -1).cpu(),
    }


def length_metrics(completions: Completions, limit: int) -> dict[str, float]:
    """`limit` is the most tokens that a completion may have; the restricted mean is taken over its first half."""
    lengths, finished = completions.lengths.float(), completions.finished
    metrics = {
        "length/mean": float(lengths.mean()),
        **std_metric("length/std", lengths),
        "length/median": float(lengths.quantile(0.5)),
        "length/restricted_mean": float(lengths.clamp(max=limit // 2).mean()),
        "length/truncated": float((~finished).float().mean()),
        "length/eos_rate": float(finished.float().mean()),
    }
    if finished.any():
        metrics["length/terminated_mean"] = float(lengths[finished].mean())
    return metrics


def text_metrics(completions: Completions) -> dict[str, float]:
    """Repetition within completions and diversity across them, on tokens without EOS."""
    rows = token_rows(completions)
    within = [share for row in rows if (share := repeated(row)) is not None]
    found = {
        "text/rep3": sum(within) / len(within) if within else 0.0,
        "text/distinct2": distinct(rows) or 0.0,
        "text/self_bleu": self_bleu(rows),
    }
    return {key: value for key, value in found.items() if value is not None}


def text_fields(completions: Completions) -> dict[str, Tensor]:
    """rep-3 of each completion, NaN where it has fewer than three tokens. [B]"""
    shares = (repeated(row) for row in token_rows(completions))
    return {"rep3": torch.tensor([math.nan if share is None else share for share in shares])}


def token_rows(completions: Completions) -> list[list[int]]:
    """Tokens of each completion without EOS."""
    rows = [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask, strict=True)]
    return [row[:-1] if done else row for row, done in zip(rows, completions.finished.tolist(), strict=True)]


def std_metric(key: str, values: Tensor) -> dict[str, float]:
    """Sample standard deviation (n - 1); nothing where one value leaves none."""
    return {key: float(values.std())} if values.numel() > 1 else {}


def sample_rows(
    step: int, completions: Completions, fields: Mapping[str, Tensor], components: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Lines for samples.jsonl; floats are rounded to what a reader can use, what is not a number becomes null."""
    samples = len(completions.prompts) // max(len({prompt.id for prompt in completions.prompts}), 1)
    return [
        {
            "step": step,
            "prompt_id": prompt.id,
            "sample": i % samples,
            "prompt": prompt.text,
            "completion": completions.texts[i],
            "tokens": int(completions.lengths[i]),
            "finished": bool(completions.finished[i]),
            **{name: round(float(values[i]), 5) for name, values in fields.items()},
            "components": {name: round(float(values[i]), 5) for name, values in components.items()},
        }
        for i, prompt in enumerate(completions.prompts)
    ]
