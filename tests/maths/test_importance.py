"""Weights between sampler and trainer, by hand: tokens of probability 0.6 and 0.2 that the sampler gave 0.3, 0.4."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.importance import importance_weights

HERE, THERE = tensor([[0.6, 0.2]]).log(), tensor([[0.3, 0.4]]).log()  # ratios 2 and 1/2
BOTH = tensor([[True, True]])


@pytest.mark.parametrize(
    ("level", "bound", "cap", "expected", "acted"),
    [
        ("token", "truncated", 3.0, [2.0, 0.5], [False, False]),
        ("token", "truncated", 1.5, [1.5, 0.5], [True, False]),  # bounded above only
        ("token", "masked", 3.0, [2.0, 0.5], [False, False]),
        ("token", "masked", 1.5, [0.0, 0.0], [True, True]),  # 2 > 1.5 and 0.5 < 1/1.5
        ("sequence_sum", "truncated", 1.5, [1.0, 1.0], [False, False]),  # 2 x 1/2
        ("sequence_mean", "masked", 1.5, [1.0, 1.0], [False, False]),  # their geometric mean
    ],
)
def test_two_tokens_by_hand(level, bound, cap, expected, acted):
    weights, where = importance_weights(HERE, THERE, BOTH, level, bound, cap)
    assert_close(weights, tensor([expected]))
    assert where.tolist() == [acted]


def test_a_completion_is_weighed_by_the_product_or_the_geometric_mean_of_its_ratios():
    here, there = tensor([[0.6, 0.8]]).log(), tensor([[0.3, 0.1]]).log()  # 2 and 8: product 16, geometric mean 4
    assert_close(importance_weights(here, there, BOTH, "sequence_sum", "truncated", 20.0)[0], tensor([[16.0, 16.0]]))
    assert_close(importance_weights(here, there, BOTH, "sequence_mean", "truncated", 20.0)[0], tensor([[4.0, 4.0]]))
    assert_close(importance_weights(here, there, BOTH, "sequence_sum", "truncated", 5.0)[0], tensor([[5.0, 5.0]]))
    assert_close(importance_weights(here, there, BOTH, "sequence_sum", "masked", 5.0)[0], tensor([[0.0, 0.0]]))


def test_padding_neither_counts_nor_is_counted():
    mask = tensor([[True, False]])
    broken = tensor([[THERE[0, 0], math.nan]])
    for level in ("token", "sequence_sum", "sequence_mean"):
        weights, acted = importance_weights(HERE, broken, mask, level, "truncated", 1.5)
        assert_close(weights, tensor([[1.5, 1.0]]))
        assert acted.tolist() == [[True, False]]


def test_weights_are_exactly_one_when_sampler_and_trainer_agree():
    for level in ("token", "sequence_sum", "sequence_mean"):
        for bound in ("truncated", "masked"):
            weights, acted = importance_weights(HERE, HERE, BOTH, level, bound, 2.0)
            assert weights.tolist() == [[1.0, 1.0]] and not acted.any()


def test_without_a_bound_acting_the_mean_under_the_sampler_is_that_under_the_policy():
    """sum_v s(v) w(v) f(v) = sum_v p(v) f(v), by enumeration of three tokens."""
    p, s, f = tensor([0.5, 0.3, 0.2]), tensor([0.25, 0.25, 0.5]), tensor([1.0, -2.0, 4.0])
    weights, _ = importance_weights(p.log()[None], s.log()[None], torch.ones(1, 3, dtype=torch.bool), "token",
                                    "truncated", 10.0)  # fmt: skip
    assert_close((s * weights[0] * f).sum(), (p * f).sum())


def test_no_gradient_flows_through_a_weight():
    logprobs = HERE.clone().requires_grad_()
    assert not importance_weights(logprobs, THERE, BOTH, "token", "truncated", 2.0)[0].requires_grad
