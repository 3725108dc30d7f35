"""Win rates by hand, and the length-controlled one against planted truths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from align.maths.wins import length_controlled, wins


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def planted(theta: float, phi: float, n: int, shift: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Judgements of n pairs with quality `theta` and length bias `phi`; own answers are `shift` spreads longer."""
    generator = torch.Generator().manual_seed(seed)
    difference = 20 * (torch.randn(n, generator=generator) + shift)
    p = (theta + phi * torch.tanh(difference / difference.std(correction=0))).sigmoid()
    return (torch.rand(n, generator=generator) < p).float(), difference


def test_a_win_is_1_a_tie_a_half():
    assert wins(tensor([2.0, 1.0, 3.0]), tensor([1.0, 1.0, 4.0])).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("theta", [-0.6, 0.0, 0.5])
def test_a_planted_quality_is_recovered_under_a_planted_length_bias(theta):
    """The standard error of theta is about 0.05 at n = 4,000, of the win rate then about 0.012."""
    won, difference = planted(theta, 1.5, 4_000, shift=0.8)
    assert float(won.mean()) > sigmoid(theta) + 0.1, "the plain win rate is inflated by length"
    assert length_controlled(won, difference) == pytest.approx(sigmoid(theta), abs=0.03)


def test_over_many_samples_it_is_right_on_average():
    found = [length_controlled(*planted(0.5, 1.5, 256, shift=0.8, seed=seed)) for seed in range(200)]
    mean, spread = sum(found) / 200, tensor(found).std()
    assert mean == pytest.approx(sigmoid(0.5), abs=3 * float(spread) / math.sqrt(200) + 0.005)


def test_without_a_length_bias_it_is_the_plain_win_rate():
    won, difference = planted(0.4, 0.0, 4_000, shift=0.8)
    assert length_controlled(won, difference) == pytest.approx(float(won.mean()), abs=0.03)


def test_from_the_other_side_it_is_one_less_it():
    won, difference = planted(0.5, 1.5, 300, shift=0.8)
    assert length_controlled(won, difference) + length_controlled(1 - won, -difference) == pytest.approx(1, abs=1e-9)


def test_ties_at_equal_lengths_are_a_half():
    assert length_controlled(torch.full((8,), 0.5), torch.zeros(8)) == 0.5


def test_equal_lengths_leave_the_plain_win_rate():
    """Three of four: log 3 = 1.0986, which the prior shrinks by 0.05 (gradient -0.04 theta against a slope of 0.75)."""
    found = length_controlled(tensor([1.0, 1.0, 1.0, 0.0]), torch.zeros(4))
    assert found == pytest.approx(0.75, abs=0.015) and found < 0.75


def test_the_prior_bounds_what_can_be_separated_and_hardly_moves_the_rest():
    assert 0.98 < length_controlled(torch.ones(32), torch.randn(32)) < 1
    won, difference = planted(0.5, 1.5, 500, shift=0.8)
    bare = _unpenalised(won, difference)
    assert length_controlled(won, difference) == pytest.approx(bare, abs=1e-3)


def _unpenalised(won: Tensor, difference: Tensor) -> float:
    """The same fit by a general optimiser and without the prior."""
    theta = torch.zeros(2, dtype=torch.double, requires_grad=True)
    length = torch.tanh(difference.double() / difference.double().std(correction=0))
    optimizer = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-9, tolerance_change=0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(theta[0] + theta[1] * length, won.double())
        value.backward()
        return value

    optimizer.step(loss)
    assert_close(theta.grad, torch.zeros(2, dtype=torch.double), rtol=0, atol=1e-6)
    return sigmoid(float(theta[0].detach()))
