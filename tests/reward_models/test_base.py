"""What a reward function may return, and that everything else is one sentence with the completion in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reward_models.base import RewardError, Sample, evaluate

SAMPLES = [Sample(f"question {i}", f"answer {i}", (1,), (2, 3), True, {}) for i in range(2)]


class Odd:
    """A number that cannot say which."""

    def __float__(self) -> float:
        raise KeyError("gone")


class Nameless(Odd):
    def __repr__(self) -> str:
        raise AttributeError


class Endless:
    def __getitem__(self, i: int) -> float:
        return 0.0

    def __len__(self) -> int:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "values", [[1, 2.0], (1.0, True), np.array([0.5, 1]), torch.tensor([0.5, 1.0]), [np.float32(1), torch.tensor(2.0)]]
)
def test_numbers_in_the_order_of_the_completions_are_rewards(values):
    assert evaluate("mine", lambda samples: values, SAMPLES) == [float(value) for value in values]


@pytest.mark.parametrize(
    "values", [None, 1.0, {1.0, 2.0}, {0: 1.0, 1: 2.0}, "ab", (v for v in (1.0, 2.0)), torch.tensor(1.0), Endless()]
)
def test_what_has_no_order_or_no_length_is_refused(values: Any):
    with pytest.raises(RewardError, match="reward 'mine' returned .*; expected 2 floats, one per completion"):
        evaluate("mine", lambda samples: values, SAMPLES)


@pytest.mark.parametrize(
    "value", [10**400, pytest.param(10**5000, id="long"), Odd(), Nameless(), None, "1", [1.0], 1j, torch.zeros(2)]
)
def test_what_is_no_number_is_refused_with_its_completion(value: Any):
    with pytest.raises(RewardError, match="(?s)reward 'mine' returned .*which is not a number.*answer 1") as refused:
        evaluate("mine", lambda samples: [0.0, value], SAMPLES)
    assert len(str(refused.value)) < 1000
