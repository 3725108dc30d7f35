"""What a training pass keeps is what the formulas count: every tensor saved for the backward pass is looked at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import TaskType
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from align import fused
from align.attention import FAMILIES
from align.forward import CHUNK, Batch, Scorer
from align.memory import kept
from align.memory.dimensions import Dimensions, load, of_config
from align.memory.kept import Training
from align.models import add_adapter
from align.schema import Lora
from tests.invariants.families import CONFIGS, model

PROMPT, LENGTH, ROWS, RANK = 40, 30, 4, 4
PACKED = PROMPT + ROWS * (LENGTH - 1)  # the prompt once, no completion's last token
DTYPES = {2: torch.bfloat16, 4: torch.float32}
ATTENTION = ["q_proj", "k_proj"]


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch, parameters: set[int]):
    """Storages saved for a backward pass, once each, but for the model's own weights. -> {address: bytes}"""
    saved: dict[int, Tensor] = {}

    def note(tensor: Any) -> Any:
        if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def inner(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Any:
        return saved_tensors_hooks(lambda tensor: note(pack(tensor)), unpack)

    monkeypatch.setattr(fused, "saved_tensors_hooks", inner)  # the hooks of SwiGLU hide what they see from ours
    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def scored(monkeypatch: pytest.MonkeyPatch, family: str, number: int, targets: Any) -> dict[int, Tensor]:
    lm = model(family, use_cache=False).to(DTYPES[number])
    fused.use_fused(lm)
    lm.requires_grad_(targets is None)
    if targets is not None:
        settings = Lora(RANK, 8, 0.0, targets, "default", False, False)
        lm = add_adapter(lm, settings, TaskType.CAUSAL_LM)
    torch.manual_seed(0)
    ids = torch.randint(10, 200, (ROWS, PROMPT + LENGTH))
    ids[:, :PROMPT] = ids[0, :PROMPT]
    everything = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, everything, torch.full((ROWS,), PROMPT), everything[:, :LENGTH])
    with counting(monkeypatch, {p.untyped_storage().data_ptr() for p in lm.parameters()}) as saved:
        Scorer(lm, 1.0)(batch)[0].sum()
    return saved


def shape_of(family: str) -> Dimensions:
    return of_config(family, CONFIGS[family].to_dict())


@pytest.mark.parametrize("number", DTYPES)
@pytest.mark.parametrize("targets", ["all-linear", ATTENTION, None], ids=["lora", "attention", "full"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_pass_keeps_what_is_counted(monkeypatch, family, number, targets):
    how = Training(number, RANK if targets else 0, targets or "all-linear")
    shape = shape_of(family)
    expected = kept.token(shape, how) * PACKED + kept.predicted(shape, how) * ROWS * LENGTH
    found = sum(t.untyped_storage().nbytes() for t in scored(monkeypatch, family, number, targets).values())
    # What is left over does not grow with tokens: masks of the positions that count, Gemma's 1 + weight.
    assert found == pytest.approx(expected, rel=0.01), (found, expected)


def test_smollm2_keeps_421_kb_of_a_token():
    """By hand: 2 bytes x (4 x 576 norms and their outputs + 2 x 576 + 2 x 192 q, attention's output, k, v + 2 x 1536
    gate, up + 7 x 16 x A) + 2 x 4 for 1 / rms = 14,056 bytes a block; 30 blocks."""
    assert kept.block(load("smollm2-135m"), Training(2, 16)) == 14_056
    assert kept.token(load("smollm2-135m"), Training(2, 16)) == 30 * 14_056 + 2 * 64 * 2


def test_the_constants_are_those_of_the_code():
    assert kept.PACKED == FAMILIES
    assert kept.CHUNK == CHUNK


def test_what_is_worked_with_by_hand():
    """SmolLM2-135M: 64 positions x 49,152 logits; five rows of the MLP and two of the residual; 9 heads' scores."""
    shape = load("smollm2-135m")
    assert kept.head(shape, 4) == 64 * 49_152 * 46
    assert kept.backward(shape, Training(2, 16)) == 2 * (5 * 1536 + 2 * 576)
    assert kept.scores(shape, 2) == 9 * (4 + 4 + 2)
    assert kept.scores(shape, 4) == 9 * 5 * 4
