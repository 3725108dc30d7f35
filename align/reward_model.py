"""A learned reward: a scalar head and a LoRA adapter on the storage of a base that other roles use too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import TaskType, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from align.attention import can_pack
from align.embedded import ModelError, sha256
from align.models import add_adapter, twin
from align.packing import last_hidden, right_pad
from align.schema import Model


@dataclass
class RewardModel:
    """A scalar head and a LoRA adapter on a base."""

    model: Any  # PeftModel around AutoModelForSequenceClassification
    tokenizer: Any
    fingerprint: str | None = None  # SHA-256 of its weights; None until it is trained

    def save(self, folder: Path) -> None:
        """Write `adapter/` with the head in it, and the tokenizer."""
        self.model.save_pretrained(folder / "adapter")
        self.tokenizer.save_pretrained(folder / "adapter")

    @torch.no_grad()
    def score(self, sequences: list[tuple[int, ...]], rows: int = 16) -> list[float]:
        """Rewards of whole token sequences (prompt and completion, EOS included when there is one)."""
        self.model.eval()
        packs = can_pack(self._decoder)
        # Packed, answers to one prompt should meet in one pass; padded, what is alike in length.
        order = sorted(range(len(sequences)), key=lambda i: (0 if packs else len(sequences[i]), sequences[i]))
        scores = [0.0] * len(sequences)
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            asked = [sequences[i] for i in chosen]
            values = self._packed(asked) if packs else self._padded(asked)
            for i, value in zip(chosen, values.squeeze(-1).float().tolist(), strict=True):
                scores[i] = value
        return scores

    @property
    def _decoder(self) -> Any:
        classifier = self.model.get_base_model()
        return getattr(classifier, classifier.base_model_prefix)

    def _packed(self, sequences: list[tuple[int, ...]]) -> Tensor:
        device = next(self.model.parameters()).device
        return self.model.get_base_model().score(last_hidden(self._decoder, sequences, device))

    def _padded(self, sequences: list[tuple[int, ...]]) -> Tensor:
        device = next(self.model.parameters()).device
        ids, mask = right_pad(sequences, self.tokenizer.pad_token_id, device)
        return self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits


class FloatHead(nn.Linear):
    """A linear head in float32 on hidden states of any dtype."""

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.weight)


def head_std(width: int) -> float:
    """1 / sqrt(h + 1): scores start with a spread of order 1 (docs/algorithms.md P14, arXiv:2403.17031)."""
    return (width + 1) ** -0.5


def build_reward_model(cfg: Model, base: Any, tokenizer: Any, seed: int) -> RewardModel:
    """An untrained reward model on the base's storage: float32 head, LoRA drawn from `seed` alone."""
    assert cfg.lora is not None
    config = copy.deepcopy(base.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
        backbone = twin(base).get_decoder()
        setattr(model, model.base_model_prefix, backbone)
        model.score = FloatHead(model.score.in_features, 1, bias=False, device=base.device)
        nn.init.normal_(model.score.weight, std=head_std(model.score.in_features))
        model.requires_grad_(False)
        peft = add_adapter(model, cfg.lora, TaskType.SEQ_CLS, modules_to_save=["score"])
    return RewardModel(peft, tokenizer)


def load_reward_model(cfg: Model, base: Any, tokenizer: Any, adapter: Path) -> RewardModel:
    """A trained reward model on the base's storage. Raises ModelError when the adapter does not fit it."""
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():  # PEFT would unpickle another, or ask the hub for it
        raise ModelError(f"{adapter} holds no adapter_model.safetensors; did the run finish?")
    reward_model = build_reward_model(cfg, base, tokenizer, seed=0)
    try:
        weights = load_file(file, device=str(base.device))
        if not any("score" in key for key in weights):
            raise ModelError(f"{adapter} has no score head: it is not the adapter of a reward model")
        outcome = set_peft_model_state_dict(reward_model.model, weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{adapter} cannot be loaded as a reward model on model={cfg.name}: {error}") from error
    if outcome.unexpected_keys:
        raise ModelError(f"{adapter} does not fit model={cfg.name}: unexpected weights {outcome.unexpected_keys[:3]}")
    reward_model.model.requires_grad_(False).eval()
    reward_model.fingerprint = sha256(file)
    return reward_model
