"""Frozen features of answers: hidden states of the start model at some depths, averaged over an answer's own tokens.

What a reward head on frozen features is fitted to (reward_models/heads.py). Computed once for a pool and kept in
`runs_root/stages`, found by the fingerprint of model, answers, depths and precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.attention import FAMILIES, can_pack
from align.data.annotator import PoolRow
from align.data.dataset import digest
from align.data.tokens import encode_completion, encode_prompt
from align.embedded import ModelError
from align.files import replacing
from align.forward import Batch, backbone, micro_batches
from align.models import Policy
from align.packing import right_pad
from align.records import Prompt

TOKENS = 2048  # of one pass, a prompt counted once; bounds memory, changes nothing


def obtain_features(
    policy: Policy, answers: Sequence[PoolRow], prompts: Sequence[Prompt], depths: Sequence[float], root: Path
) -> Tensor:
    """[answers, depths, H] float32 of answers of a pool to these prompts; from the cache where it has them.

    A depth is a share of the decoder's layers: 1 is after the last one, before its final norm.
    """
    dtype = str(next(policy.reference.parameters()).dtype)
    asked = [[prompt.id, list(map(dict, prompt.messages))] for prompt in prompts]
    key = digest([policy.fingerprint, asked, [asdict(row) for row in answers], list(depths), dtype, "mean over tokens"])
    cached = root / f"features-{key[:12]}.safetensors"
    if not cached.is_file():
        print(f"computing features of {len(answers)} answers, once: {cached}", flush=True)
        _save(cached, answer_features(policy, answers, prompts, depths))
    return load_file(cached)["features"]


@torch.no_grad()
def answer_features(
    policy: Policy, answers: Sequence[PoolRow], prompts: Sequence[Prompt], depths: Sequence[float]
) -> Tensor:
    """[answers, depths, H] float32. Of an answer without a token, zeros. Raises ModelError."""
    decoder = backbone(policy.reference)
    if not can_pack(decoder):
        raise ModelError(f"model.path: frozen features are computed for {', '.join(FAMILIES)} only, not for a "
                         f"{decoder.config.model_type} model")  # fmt: skip
    layers = [layer_at(depth, len(decoder.layers)) for depth in depths]
    batch = batch_of_answers(policy, answers, prompts)
    found = torch.zeros(len(answers), len(layers), decoder.config.hidden_size)
    with _watched(decoder, layers) as seen:
        for chosen in micro_batches(batch, None, TOKENS):
            part = batch.rows(chosen)
            part.packed.hidden(decoder, use_cache=False)
            found[chosen.cpu()] = torch.stack([_pooled(seen[layer], part) for layer in layers], 1).cpu()
    return found


def layer_at(depth: float, layers: int) -> int:
    """A share of the layers as the number of layers passed: 0.667 of 30 is 20; at least one."""
    return max(1, round(depth * layers))


def batch_of_answers(policy: Policy, answers: Sequence[PoolRow], prompts: Sequence[Prompt]) -> Batch:
    """Every answer behind its prompt. A pad follows each answer, since packing leaves a row's last token out."""
    tokenizer = policy.tokenizer
    encoded = {prompt.id: tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts}
    rows, starts, lengths = [], [], []
    for row in answers:
        ids = encode_completion(tokenizer, row.text)
        ids = ids if row.finished else ids[:-1]
        prompt = encoded[row.prompt_id]
        rows.append((*prompt, *ids, tokenizer.pad_token_id))
        starts.append(len(prompt))
        lengths.append(len(ids) + 1)
    ids, mask = right_pad(rows, tokenizer.pad_token_id, policy.device)
    width = torch.arange(max(lengths), device=policy.device)
    counted = width < torch.tensor(lengths, device=policy.device).unsqueeze(-1)
    return Batch(ids, mask, torch.tensor(starts, device=policy.device), counted)


def _pooled(states: Tensor, part: Batch) -> Tensor:
    """states [1, L, H] of a packed row -> [B, H] float32, each answer's mean over its tokens."""
    packed, lengths = part.packed, part.completion_mask.sum(-1)
    row = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
    own = torch.ones_like(row, dtype=torch.bool)
    own[lengths.cumsum(0) - lengths] = False  # the state that predicts an answer's first token is its prompt's
    sums = states.new_zeros(len(lengths), states.shape[-1], dtype=torch.float32)
    sums.index_add_(0, row[own], states[0][packed.predicting][own].float())
    return sums / (lengths - 1).clamp(min=1).unsqueeze(-1)


@contextmanager
def _watched(decoder: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What the layers put out at the last pass, by number: 1 is the first."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            seen[layer] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = [decoder.layers[layer - 1].register_forward_hook(keep(layer)) for layer in {*layers}]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _save(path: Path, features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        save_file({"features": features}, aside)
