"""Where an adapter starts: which of its two matrices is zero, whether it starts from the base, what can learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align.models import load_policy
from tests.config.test_conf import composed
from tests.end_to_end.helpers import TINY, execute, logprobs

SFT = ("algo=sft", "algo.optimizer.warmup_steps=0", "steps=2", "algo.optimizer.lr=0.05")


def policy(init: str) -> Any:
    e = composed(*TINY, *SFT, f"model.lora.init={init}")
    return load_policy(e.model, torch.device("cpu"), torch.float32, seed=0)


def matrices(model: Any, name: str) -> list[torch.Tensor]:
    return [p.detach() for key, p in model.named_parameters() if f"{name}.default" in key]


@pytest.mark.parametrize(
    ("init", "a_is_zero", "b_is_zero"),
    [("default", False, True), ("b_random", True, False), ("zeros", True, True), ("both_random", False, False)],
)
def test_which_matrix_is_zero(init, a_is_zero, b_is_zero):
    model = policy(init).model
    assert len(matrices(model, "lora_A")) == len(matrices(model, "lora_B")) == 14  # seven linear layers in two blocks
    assert all((not m.any()) == a_is_zero for m in matrices(model, "lora_A"))
    assert all((not m.any()) == b_is_zero for m in matrices(model, "lora_B"))


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_what_is_drawn_is_uniform_within_one_over_the_root_of_its_inputs(name):
    for matrix in matrices(policy("both_random").model, name):
        bound = matrix.shape[1] ** -0.5
        assert 0.9 * bound < matrix.abs().max() <= bound


@pytest.mark.parametrize("init", ["default", "b_random", "zeros", "both_random"])
def test_only_two_random_matrices_start_away_from_the_base(init):
    made = policy(init)
    shift = float((logprobs(made.model) - logprobs(policy("default").reference)).abs().max())
    assert (shift > 0.01) if init == "both_random" else (shift == 0)
    assert torch.equal(logprobs(made.reference), logprobs(made.model))


def test_b_random_is_drawn_from_the_seed_alone():
    torch.manual_seed(5)
    first = matrices(policy("b_random").model, "lora_B")
    torch.manual_seed(6)
    assert all(map(torch.equal, first, matrices(policy("b_random").model, "lora_B")))


@pytest.mark.parametrize("init", ["zeros", "b_random"])
def test_two_zero_matrices_never_move(tmp_path, init):
    from safetensors.torch import load_file

    path = execute(tmp_path, *SFT, f"model.lora.init={init}")
    weights = load_file(path / "adapter" / "adapter_model.safetensors")
    moved = any(w.any() for key, w in weights.items() if "lora_A" in key)
    assert moved == (init == "b_random")
    if init == "zeros":
        assert not any(w.any() for w in weights.values())
