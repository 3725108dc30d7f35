"""Where a run computes, and in which precision."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from align.embedded import ModelError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h


def keep_freed_memory() -> None:
    """glibc returns large blocks to the kernel when they are freed, and a tensor's pages are then made anew, one fault
    for 4 KB: a third of a training step on a CPU (docs/performance.md). Elsewhere than on glibc, nothing."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 8 << 20)


def return_freed_memory() -> None:
    """Between two phases of a run, what malloc was told to keep: blocks of one size leave holes that those of another
    do not fit into, and a process would hold the sum of its phases instead of the largest (docs/memory.md)."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def lay_out_gradients(parameters: Iterable[Tensor]) -> None:
    """Zeros where there is no gradient yet. Made amid a backward pass, gradients lie between blocks of activations, and
    what is freed around them does not hold the next micro-batch (docs/memory.md)."""
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


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
