"""Weights that earlier runs left, or other programs: loaded by transformers and PEFT, as was agreed with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from align.embedded import ModelError, cache_root
from align.refusals import first_line
from align.rows import RunError
from align.runs import read
from align.schema import Model


def pretrained(loader: Any, where: str, asked: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(where, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # of a damaged file the libraries raise whatever it makes them stumble over
        fix = f"; remove {where}, it will be made again" if Path(where).parent == cache_root() else ""
        raise ModelError(f"{asked}: transformers cannot load it: {first_line(error)}{fix}") from error


def merge_start(model: Any, cfg: Model) -> Any:
    """Policy and reference both start from the trained run: SFT then RL has the SFT policy as reference.

    An adapter is relative to what its own run started from, so a chain of starts is merged from its beginning.
    """
    run = Path(str(cfg.start)).expanduser()
    earlier = _start_of(run, cfg)
    if (run / "model" / "config.json").is_file():
        asked = f"model.start={run}"
        return pretrained(AutoModelForCausalLM, str(run / "model"), asked, dtype=model.dtype, use_safetensors=True)
    if not (run / "adapter" / "adapter_config.json").is_file():
        raise ModelError(f"model.start={run}: it holds no adapter/ and no model/; did the run finish?")
    if not (run / "adapter" / "adapter_model.safetensors").is_file():  # PEFT would unpickle adapter_model.bin
        raise ModelError(f"model.start={run}: its adapter/ has no adapter_model.safetensors")
    if earlier is not None:
        model = merge_start(model, replace(cfg, start=earlier))
    return _adapted(model, run / "adapter").merge_and_unload()


def _adapted(model: Any, adapter: Path) -> Any:
    """With a run's adapter, which is LoRA's: other kinds name files and repositories that PEFT would go and read."""
    try:
        kind = json.loads((adapter / "adapter_config.json").read_text("utf-8"))["peft_type"]
        if kind != "LORA":
            raise ValueError(f"peft_type={kind}, expected LORA")
        return PeftModel.from_pretrained(model, str(adapter))
    except Exception as error:  # of a damaged file the libraries raise whatever it makes them stumble over
        raise ModelError(f"model.start={adapter.parent}: its adapter cannot be loaded: {first_line(error)}") from error


def starts(cfg: Model) -> list[Path]:
    """The runs that a policy starts from, the last first: up to one that trained all weights and so holds the rest."""
    found: list[Path] = []
    start = cfg.start
    while start is not None and Path(start).expanduser() not in found:
        found.append(Path(start).expanduser())
        start = None if (found[-1] / "model" / "config.json").is_file() else _start_of(found[-1], cfg)
    return found


def _start_of(run: Path, cfg: Model) -> str | None:
    """The model.start of a run to start from. Raises ModelError when it is not a run of a policy on this model."""
    try:
        settings = read(run).config
        made_on, earlier, kind = settings["model"]["path"], settings["model"]["start"], settings["algo"]["kind"]
        packed = settings["model"].get("quant")  # runs older than the setting lack it
    except RunError as error:
        raise ModelError(f"model.start: {error}") from None
    except (KeyError, TypeError):
        raise ModelError(f"model.start={run}: its config.yaml is not the config of a run") from None
    if made_on != cfg.path:
        raise ModelError(f"model.start={run}: it was trained on model.path={made_on}, not on {cfg.path}")
    if packed is not None:
        raise ModelError(f"model.start={run}: its adapter belongs to a base of model.quant={packed}, which cannot be "
                         "merged with it; start from a run without")  # fmt: skip
    if kind == "reward":
        raise ModelError(f"model.start={run}: it is a reward model, not a policy; use reward.learned.run={run}")
    return earlier
