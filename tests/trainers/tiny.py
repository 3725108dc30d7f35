"""A random two-layer Llama, policies and reward models on it, a few pairs, and a run's settings. All in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from align import fused
from align.models import twin
from align.records import Demonstration, PreferencePair, Prompt
from align.reward_model import build_reward_model
from align.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()  # its chat template puts a newline after EOS
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = SimpleNamespace(rank=4, alpha=8.0, dropout=0.0, targets=TARGETS, init="default", rslora=False, dora=False)


def prompt(text: str) -> Prompt:
    return Prompt(id=text, messages=({"role": "user", "content": text},), topic=text)


PAIRS = [
    PreferencePair(prompt("Name a fruit."), "An apple.", "No."),
    PreferencePair(prompt("2 + 2?"), "4", "Five, I think."),
    PreferencePair(prompt("Say hi."), "Hello there!", "Hi"),
    PreferencePair(prompt("Which colour is grass?"), "Green.", "Bright blue"),
    PreferencePair(prompt("Stop?"), "ok", "never ever"),
]
DEMONSTRATIONS = [Demonstration(pair.prompt, pair.chosen) for pair in PAIRS]
# Held out what was trained on: enough to see that measuring works. Gold prefers every rejected answer.
DATA = SimpleNamespace(
    train_pairs=PAIRS, heldout_pairs=PAIRS, demonstrations=DEMONSTRATIONS,
    gold=lambda samples: [float(any(pair.rejected == sample.completion for pair in PAIRS)) for sample in samples],
)  # fmt: skip

KNOBS: dict[str, dict[str, float]] = {  # beta and what else each loss needs
    "dpo": {"beta": 0.3},
    "ipo": {"beta": 0.2},
    "cdpo": {"beta": 0.3, "label_smoothing": 0.1},
    "rdpo": {"beta": 0.3, "length_alpha": 0.02},
    "ldpo": {"beta": 0.3, "ld_alpha": 0.4},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "orpo": {"beta": 0.2},
    "kto": {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5},
}
NO_KNOBS = dict.fromkeys(
    ("label_smoothing", "length_alpha", "ld_alpha", "gamma", "desirable_weight", "undesirable_weight")
)


def optimizer(**changes: Any) -> SimpleNamespace:
    settings = dict(lr=1e-2, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, schedule="constant",
                    warmup_steps=0)  # fmt: skip
    return SimpleNamespace(**(settings | changes))


def experiment(algo: SimpleNamespace, steps: int = 2, **changes: Any) -> SimpleNamespace:
    settings = dict(algo=algo, steps=steps, seed=0, device="cpu", model=SimpleNamespace(lora=LORA),
                    guard=SimpleNamespace(nonfinite="stop"))  # fmt: skip
    return SimpleNamespace(**(settings | changes))


def preference(loss: str, pairs_per_step: int = 4, micro_batch: int = 2, **changes: Any) -> SimpleNamespace:
    """A run with one of the preference losses."""
    settings = {"loss": loss, **NO_KNOBS, **KNOBS[loss], "optimizer": optimizer()} | changes
    return experiment(SimpleNamespace(pairs_per_step=pairs_per_step, micro_batch=micro_batch, **settings))


def sft(examples_per_step: int = 4, micro_batch: int = 2, **changes: Any) -> SimpleNamespace:
    settings = {"optimizer": optimizer()} | changes
    return experiment(SimpleNamespace(examples_per_step=examples_per_step, micro_batch=micro_batch, **settings))


def reward(pairs_per_step: int = 4, micro_batch: int = 2, **changes: Any) -> SimpleNamespace:
    settings = {"optimizer": optimizer(), "center": None} | changes
    return experiment(SimpleNamespace(pairs_per_step=pairs_per_step, micro_batch=micro_batch, **settings))


def base() -> LlamaForCausalLM:
    """The same random weights at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=TOKENIZER.pad_token_id,
        eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None, tie_word_embeddings=True,
        initializer_range=0.2,  # wide enough that logits, and so losses, are of ordinary size
    )  # fmt: skip
    model = LlamaForCausalLM(config).requires_grad_(False)
    fused.use_fused(model)  # as align/models.py does; Llama's own norms compute in float32, in a float64 model too
    return model


def lora_policy(init: str | bool = True, moved: bool = False) -> SimpleNamespace:
    """A LoRA policy and its reference as align/models.py builds them; `moved` adds noise, as if it had been trained."""
    model = base()
    reference = twin(model)
    torch.manual_seed(1)
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=init)
    policy = get_peft_model(model, config)
    if init is not True:  # the base was rewritten: the reference is base and initial adapter together
        reference = twin(policy)
    if moved:
        perturb(policy)
    return SimpleNamespace(model=policy, reference=reference.requires_grad_(False).eval(), tokenizer=TOKENIZER)


def full_policy() -> SimpleNamespace:
    """Every weight trained, as with lora=none."""
    return SimpleNamespace(model=base().requires_grad_(True), reference=base().eval(), tokenizer=TOKENIZER)


def reward_model(moved: bool = False) -> Any:
    model = build_reward_model(SimpleNamespace(lora=LORA), base(), TOKENIZER, seed=1)
    if moved:
        perturb(model.model)
    return model


def perturb(model: torch.nn.Module) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
