"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch

from align.embedded import ModelError


def resolve_device(name: str) -> torch.device:
    """`auto` is the accelerator torch finds, else the CPU. Raises ModelError for one that is not there."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    device = torch.device(name)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device.type != "cpu" and (found is None or found.type != device.type):
        raise ModelError(f"device={name}: torch finds no such device here; use device=cpu or device=auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has = torch.cpu.get_capabilities()
        native = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    else:
        native = device.type == "xpu"
    return torch.bfloat16 if native else torch.float32
