"""The only place that loads a base: tokenizer, and the policy with its reference.

Roles share one frozen base by sharing its tensors, not by switching adapters: policy, reference and reward model are
separate module trees whose base parameters are the same storage. Nothing has to be switched on or off, so nothing can
be left in the wrong state, and a second role costs its adapter and nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from align import fused, quant
from align import lora as fused_lora
from align.embedded import ModelError, embedded_folder, gguf_folder, sha256, tiny_folder
from align.hub import hub_folder
from align.on_policy_laws import MUTATING_INITS
from align.refusals import first_line
from align.schema import Lora, Model
from align.starts import merge_start, pretrained, starts

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# Inits that rewrite the base: the reference must keep the initial adapter, or KL at step 0 is not 0.

PEFT_INITS = {"default": True, **dict.fromkeys(fused_lora.STARTS, False)}  # False: A and B both drawn
# Granite, Cohere and Falcon-H1 multiply their logits outside the head, where align/forward.py would not see it.
SCALED_LOGITS = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


@dataclass
class Policy:
    """What is trained, what it is compared with, and how it reads and ends text."""

    model: Any  # PeftModel, or the plain causal LM with lora=none
    reference: nn.Module  # frozen causal LM equal to the model at the start; shares the base's storage under LoRA
    tokenizer: Any
    stop_ids: tuple[int, ...]
    fingerprint: str  # SHA-256 of the start weights
    started: bool = False  # from an earlier run (model.start): the base alone is then not what the adapter sits on

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def save(self, folder: Path) -> None:
        """Write `adapter/` (PEFT, with the tokenizer), or `model/` without LoRA.

        The adapter names what it sits on, so that plain PEFT loads the policy: the base, or after `model.start` the
        merged start, which is then written beside it as `start/`.
        """
        if not isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder / "model")
            self.tokenizer.save_pretrained(folder / "model")
            return
        target = folder / "adapter"
        if self.started:
            start = folder.resolve() / "start"
            self.reference.save_pretrained(start)  # type: ignore[operator]
            self.model.peft_config["default"].base_model_name_or_path = str(start)
        if self.model.peft_config["default"].init_lora_weights in MUTATING_INITS:
            _save_converted(self.model, self.reference, target)
        else:
            self.model.save_pretrained(target)
        self.tokenizer.save_pretrained(target)


def locate(path: str) -> str:
    """model.path -> a folder that transformers can load. Raises ModelError."""
    if path == "embedded":
        return str(embedded_folder())
    if path == "tiny":
        return str(tiny_folder())
    if path.endswith(".gguf"):
        return str(gguf_folder(Path(path).expanduser()))
    folder = Path(path).expanduser()
    if not folder.is_dir() and not path.startswith((".", "/", "~")):
        return str(hub_folder(path))
    if not (folder / "config.json").is_file():
        missing = "it has no config.json" if folder.is_dir() else "there is no such folder"
        raise ModelError(f"model.path={path}: {missing}; give a transformers folder, a .gguf file or a hub id")
    return str(folder)


def load_policy(cfg: Model, device: torch.device, dtype: torch.dtype, seed: int) -> Policy:
    """Base, adapter, reference and tokenizer. LoRA weights are float32 and drawn from `seed` alone."""
    base = load_base(cfg, device, dtype)
    tokenizer = load_tokenizer(cfg)
    stop_ids = _stop_ids(base, tokenizer)
    if tokenizer.pad_token_id in stop_ids:  # a reward model finds the last token by the pads behind it
        tokenizer.pad_token = _spare_token(tokenizer, stop_ids)
    base.config.pad_token_id = tokenizer.pad_token_id
    fingerprint = source_fingerprint(Path(locate(cfg.path)), starts(cfg))
    if cfg.quant is not None:  # other weights than those of the files
        fingerprint = hashlib.sha256(f"{fingerprint} {cfg.quant}".encode()).hexdigest()
    if cfg.lora is None:
        reference = _frozen(copy.deepcopy(base))
        return Policy(base, reference, tokenizer, stop_ids, fingerprint)
    reference = _frozen(twin(base))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = add_adapter(base, cfg.lora, TaskType.CAUSAL_LM)
    if cfg.lora.init in (*MUTATING_INITS, "both_random"):  # the start is base and adapter together
        reference = _frozen(twin(model))
    return Policy(model, reference, tokenizer, stop_ids, fingerprint, started=cfg.start is not None)


def load_base(cfg: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """The causal LM in `dtype`, with the adapter of `model.start` merged in. Raises ModelError."""
    packed = quant.options(cfg.quant, device, dtype) if cfg.quant is not None else {}
    where = locate(cfg.path)
    if (Path(where) / "adapter_config.json").is_file():  # transformers would put it into the base without a word
        raise ModelError(f"model.path={cfg.path}: the folder holds an adapter; name that of its base, and the run that "
                         "trained it as model.start")  # fmt: skip
    asked = f"model.path={cfg.path}"
    model = pretrained(AutoModelForCausalLM, where, asked, dtype=dtype, use_safetensors=True, **packed)
    scaling = [k for k in SCALED_LOGITS if getattr(model.config.get_text_config(), k, None) not in (None, 1, 1.0)]
    if scaling:
        raise ModelError(f"model.path={cfg.path}: it scales its logits ({scaling[0]}), which is not supported")
    if cfg.start is not None:
        model = merge_start(model, cfg)
    if cfg.quant is not None:
        quant.use_ours(model)
    fused.use_fused(model)
    return model.to(device).requires_grad_(cfg.lora is None)


def load_tokenizer(cfg: Model) -> Any:
    """Tokenizer whose EOS is the token that ends an assistant's turn, and whose pad is never EOS. Raises ModelError.

    SmolLM2 ships pad = EOS = 2, which hides EOS from a loss that ignores pads and from a reward model that reads the
    last token before them.
    """
    where = locate(cfg.path)
    tokenizer = pretrained(AutoTokenizer, where, f"model.path={cfg.path}")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path={cfg.path}: its tokenizer has no EOS token, so completions could never end")
    try:
        tokenizer.eos_token = _turn_end(tokenizer)
    except Exception as error:  # a template or a vocabulary that is damaged
        raise ModelError(f"model.path={cfg.path}: its tokenizer cannot write a chat: {first_line(error)}") from error
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _spare_token(tokenizer, (tokenizer.eos_token_id,))
    tokenizer.padding_side = "right"
    return tokenizer


def lora_config(lora: Lora, task: TaskType, **extra: Any) -> LoraConfig:
    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        init_lora_weights=PEFT_INITS.get(lora.init, lora.init),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        **extra,
    )


def add_adapter(model: Any, lora: Lora, task: TaskType, **extra: Any) -> Any:
    """get_peft_model without its advice to developers of PEFT and transformers. Raises ModelError.

    PEFT refuses a list of targets when none is found, and passes over those that are not found when some are.
    """
    config = lora_config(lora, task, **extra)
    names = [f".{name}" for name, _ in model.named_modules()]
    for target in config.target_modules if config.target_modules != "all-linear" else ():
        if not any(name.endswith(f".{target}") for name in names):
            raise ModelError(f"model.lora.targets: the model has no module {target}; all-linear fits every model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, fused_lora.use_fused(config))
    fused_lora.set_start(adapted, lora.init)
    return adapted


def source_fingerprint(folder: Path, starts: Sequence[Path] = ()) -> str:
    """SHA-256 over the weight files a policy starts from, its chain of starts too; the same in whatever dtype."""
    digest = hashlib.sha256()
    for place in (folder, *(start / part for start in starts for part in ("adapter", "model"))):
        for file in sorted(place.glob("*.safetensors")):
            digest.update(sha256(file).encode())
    return digest.hexdigest()


def twin(model: nn.Module) -> Any:
    """The same modules over the same frozen storage; what is trainable (an adapter) is copied."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, memo=shared)


def _frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


def _save_converted(model: PeftModel, reference: nn.Module, target: Path) -> None:
    """Adapters of inits that rewrote the base, expressed on the original base, so that plain PEFT loads them."""
    initial = target.with_name("initial_adapter")
    assert isinstance(reference, PeftModel)
    kept = reference.peft_config["default"].init_lora_weights
    reference.peft_config["default"].init_lora_weights = True
    reference.save_pretrained(initial)
    reference.peft_config["default"].init_lora_weights = kept
    model.save_pretrained(target, path_initial_model_for_weight_conversion=str(initial))
    shutil.rmtree(initial)


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token the model was taught to stop at; the tokenizer's EOS comes first."""
    config: GenerationConfig | None = getattr(model, "generation_config", None)
    declared = getattr(config, "eos_token_id", None) or []
    declared = [declared] if isinstance(declared, int) else list(declared)
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *declared]))


def _turn_end(tokenizer: Any) -> str:
    """The special token that the chat template puts after an assistant's turn (Gemma: <end_of_turn>, not <eos>)."""
    if not tokenizer.chat_template:
        return tokenizer.eos_token
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "zzz"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    after = tokenizer(text.rpartition("zzz")[2], add_special_tokens=False)["input_ids"]
    ends = [i for i in after if i in tokenizer.all_special_ids or i in tokenizer.added_tokens_decoder]
    return tokenizer.convert_ids_to_tokens(ends[0]) if ends else tokenizer.eos_token


def _spare_token(tokenizer: Any, taken: tuple[int, ...]) -> str:
    """A special token to pad with that never ends a text: the unknown token, else the lowest special id."""
    special = sorted(set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder))
    ids = [i for i in special if i not in taken]
    if tokenizer.unk_token_id in ids:
        return tokenizer.unk_token
    if ids:
        return tokenizer.convert_ids_to_tokens(ids[0])
    raise ModelError("the tokenizer has no special token that does not end a text, so nothing can serve as padding")
