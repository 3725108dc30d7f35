import pytest
import torch
from torch import nan, tensor
from torch.testing import assert_close

from align.maths.advantages import gae
from align.maths.values import explained_variance, value_losses

RETURNS = tensor([[1.0, 3.0]])  # mean 2, variance 1
BOTH = torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("value", "target", "loss", "acted"),
    [
        (1.0, 2.0, 1.125, True),  # held at 0.5: 1.5^2 / 2
        (-1.0, -2.0, 1.125, True),  # the same downwards
        (1.0, 0.0, 0.5, False),  # moved away from the return: the true error, 1^2 / 2, is the worse one
        (0.25, 1.0, 0.28125, False),  # inside the bound: 0.75^2 / 2
    ],
)
def test_value_loss_by_hand_with_old_value_zero_and_clip_one_half(value, target, loss, acted):
    got, where = value_losses(tensor([[value]]), tensor([[0.0]]), tensor([[target]]), 0.5)
    assert_close(got, tensor([[loss]]))
    assert where.item() is acted


def test_the_bound_is_around_the_old_value():  # old 10, clip 0.5: held at 10.5, 1.5^2 / 2
    got, where = value_losses(tensor([[11.0]]), tensor([[10.0]]), tensor([[12.0]]), 0.5)
    assert got.item() == 1.125
    assert where.item()


def test_without_clip_it_is_half_the_squared_error():
    got, where = value_losses(tensor([[1.0]]), tensor([[0.0]]), tensor([[4.0]]), None)  # 3^2 / 2
    assert got.item() == 4.5
    assert not where.item()


def test_clipping_never_lowers_the_loss():
    values, old, returns = torch.randn(3, 100, 10)
    clipped, acted = value_losses(values, old, returns, 0.2)
    plain = (values - returns).square() / 2
    assert (clipped >= plain).all()
    assert (clipped > plain).any()
    assert_close(clipped[~acted], plain[~acted])


def test_the_gradient_is_the_error_or_zero_where_the_bound_acts():
    # clip 0.5, old 0, return 2: at rest 0 - 2; inside 0.25 - 2; beyond, towards the return, nothing. Away: -1 - 2
    values = tensor([[0.0, 0.25, 1.0, -1.0]], requires_grad=True)
    losses, _ = value_losses(values, torch.zeros(1, 4), torch.full((1, 4), 2.0), 0.5)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert gradient.tolist() == [[-2.0, -1.75, 0.0, -3.0]]


def test_the_bound_never_acts_on_a_value_inside_it():
    values, old, returns = torch.randn(3, 100, 100) * 0.1
    _, acted = value_losses(values, old, returns, 10.0)
    assert not acted.any()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 3.0], 1.0),  # perfect
        ([10.0, 10.0], 0.0),  # a constant, at any level
        ([2.0, 3.0], 0.75),  # errors -1 and 0: variance 1/4
        ([3.0, 1.0], -3.0),  # errors -2 and 2: variance 4
    ],
)
def test_explained_variance_by_hand(values, expected):
    assert explained_variance(tensor([values]), RETURNS, BOTH).item() == expected


def test_explained_variance_does_not_see_padding():
    values, returns, mask = tensor([[2.0, nan, 3.0]]), tensor([[1.0, 99.0, 3.0]]), tensor([[True, False, True]])
    assert explained_variance(values, returns, mask).item() == 0.75


def test_there_is_nothing_to_explain_in_equal_returns_or_none():
    values, returns = tensor([[1.0, 2.0]]), tensor([[5.0, 5.0]])
    for mask in (BOTH, tensor([[True, False]]), torch.zeros_like(BOTH)):
        assert explained_variance(values, returns, mask).item() == 0.0


def test_returns_that_differ_only_by_rounding_leave_nothing_to_explain():
    values = torch.randn(16, 30)
    mask = torch.ones_like(values, dtype=torch.bool)
    rewards = torch.zeros_like(values)
    rewards[:, -1] = 1.0
    returns = gae(rewards, values, mask, 1.0, 1.0) + values  # a solved task: every return is 1
    for equal in (returns, torch.full_like(values, -0.3)):
        assert explained_variance(values, equal, mask).item() == 0.0
