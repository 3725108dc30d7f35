"""Small random models of four families, in float32, with the byte tokenizer and prompts of different lengths."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from align.models import Policy
from align.records import Prompt
from align.schema import Sampling
from align.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
V = len(TOKENIZER)
# EOS and every sixteenth token: random weights never end an answer otherwise, and rows must end at different times.
STOPS = (TOKENIZER.eos_token_id, *range(10, V, 16))
WINDOW = 8  # tokens that a sliding layer sees; prompts have 6 to 40
TEXTS = ["Hi", "Name a fruit.", "Which colour is the grass in spring?", "2 + 2?"]
PROMPTS = [Prompt(id=text, messages=({"role": "user", "content": text},), topic=text) for text in TEXTS]

COMMON = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=128, pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id,
    bos_token_id=None,
    initializer_range=0.4,  # wide enough that some tokens are likely and the most likely one is not a near tie
)  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON, num_hidden_layers=2, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**COMMON, num_hidden_layers=2, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**COMMON, num_hidden_layers=2, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **COMMON,
        num_hidden_layers=3,
        tie_word_embeddings=True,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=5.0,
    ),  # fmt: skip
}


def model(family: str, seed: int = 0, **changes: Any) -> Any:
    """The same random weights for a seed, every one of them trainable; `changes` are to its config."""
    config = copy.deepcopy(CONFIGS[family])
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):  # Qwen2's start at 0
                torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def policy(family: str) -> Policy:
    """A policy and a reference with other weights."""
    return Policy(model(family), model(family, seed=1), TOKENIZER, STOPS, fingerprint="")


def sampling(temperature: float = 1.0, max_new_tokens: int = 24, rows: int = 64) -> Sampling:
    return Sampling(temperature, None, None, None, max_new_tokens=max_new_tokens, rows=rows, lora="merged", vllm=None,
                    importance=None)  # fmt: skip


def full_logits(lm: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The plain way: everything through the model's own forward. [B, L] -> [B, L, V]"""
    return lm(input_ids=ids, attention_mask=None if mask is None else mask.long(), use_cache=False).logits
