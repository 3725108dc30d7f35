"""The two rates of this machine that the limit is made of, measured in the dtype of the base."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from align.merged import Product

SIDE = 4096  # of the matrices multiplied
STREAMED = 1 << 28  # bytes read through, well above any cache
SECONDS = 2.0  # of trying; the best try counts, as others may use the machine


@torch.no_grad()
def measure(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """flops: of a large matrix product. bytes: of weights in products of one row with many matrices, as a decoding step
    has them, in the layout that is faster. For comparison, bytes_sum: of numbers in a plain sum."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    flops = 2 * SIDE**3 / _best(lambda: a @ b.T, device)
    row = torch.randn(1, 1024, dtype=dtype, device=device)
    weights = torch.randn(STREAMED // dtype.itemsize // 1024 // 2048, 2048, 1024, dtype=dtype, device=device)
    layers = [Product([_layer(weight)]) for weight in weights]
    for layer in layers:
        layer.refresh()
    plain = _best(lambda: [torch.nn.functional.linear(row, weight) for weight in weights], device)
    laid_out = _best(lambda: [layer(row) for layer in layers], device)
    numbers = torch.randn(STREAMED // 4, device=device)  # equal pages may be merged behind our back
    total = _best(numbers.sum, device)
    return {"flops": flops, "bytes": STREAMED / min(plain, laid_out), "bytes_sum": STREAMED / total}  # fmt: skip


def _layer(weight: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def _best(work: Callable[[], Any], device: torch.device) -> float:
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
