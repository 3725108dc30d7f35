import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.policy import Denominators, aggregate, clipped_surrogate, log_ratio

MASK = tensor([[True, True, True, True], [True, True, False, False]])
LOSSES = tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 99.0, 99.0]])
WHOLE = Denominators(tokens=6, sequences=2, budget=8)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("token_mean", 40 / 6), ("sequence_mean", (2.5 + 15) / 2), ("sequence_sum", 20.0), ("constant", 40 / 16)],
)
def test_aggregation_by_hand(how, expected):
    assert_close(aggregate(LOSSES, MASK, how, WHOLE), tensor(expected))


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_micro_batches_add_up_to_the_whole_step(how):
    parts = sum(aggregate(LOSSES[i : i + 1], MASK[i : i + 1], how, WHOLE) for i in range(2))
    assert_close(parts, aggregate(LOSSES, MASK, how, WHOLE))


def test_one_loss_per_sequence_survives_the_mean_over_its_tokens():
    assert_close(aggregate(tensor([[3.0], [5.0]]), MASK, "sequence_mean", WHOLE), tensor(4.0))


def test_ratio_levels_by_hand():
    new, old = tensor([[-1.0, -2.0, 7.0]]), tensor([[-1.5, -2.25, 0.0]])
    mask = tensor([[True, True, False]])
    assert log_ratio(new, old, mask, "token")[0, :2].tolist() == [0.5, 0.25]
    assert log_ratio(new, old, mask, "sequence_sum").tolist() == [[0.75]]
    assert log_ratio(new, old, mask, "sequence_mean").tolist() == [[0.375]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.2, True),  # already more likely: no further push up
        (1.5, -1.0, 1.5, False),  # more likely and bad: full push down
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),
        (1.1, 1.0, -1.1, False),
    ],
)
def test_the_surrogate_is_the_worse_of_the_two(ratio, advantage, loss, clipped):
    got, acted, dual = clipped_surrogate(tensor([[math.log(ratio)]]), tensor([[advantage]]), 0.2, 0.2)
    assert_close(got, tensor([[loss]]))
    assert acted.item() is clipped
    assert not dual.item()


@pytest.mark.parametrize(("clip", "dual"), [(None, None), (0.2, None), (0.2, 3.0)])
def test_at_ratio_one_the_gradient_is_reinforce(clip, dual):
    logprobs = tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = tensor([[2.0, -3.0]])
    loss, *acted = clipped_surrogate(logprobs - logprobs.detach(), advantages, clip, clip, dual)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert_close(gradient, -advantages)
    assert not torch.stack(acted).any()


def test_a_clipped_token_has_no_gradient():
    log_ratios = tensor([[math.log(1.5)]], requires_grad=True)
    loss, _, _ = clipped_surrogate(log_ratios, tensor([[1.0]]), 0.2, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratios)
    assert gradient.item() == 0.0


def test_asymmetric_bounds_are_not_mixed_up():
    up, _, _ = clipped_surrogate(tensor([[math.log(1.25)]]), tensor([[1.0]]), 0.2, 0.28)
    assert_close(up, tensor([[-1.25]]))  # below 1 + high
    down, _, _ = clipped_surrogate(tensor([[math.log(0.75)]]), tensor([[-1.0]]), 0.2, 0.28)
    assert_close(down, tensor([[0.8]]))  # bounded by 1 - low


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "dual"),
    [
        (5.0, -2.0, 6.0, True),  # the loss would be 5 x 2 and is held at 3 x 2
        (2.0, -2.0, 4.0, False),  # below the bound
        (0.5, -2.0, 1.6, False),  # the ordinary clip, 0.8 x 2
        (5.0, 2.0, -2.4, False),  # only bad actions: the ordinary clip, 1.2 x 2
        (5.0, 0.0, 0.0, False),
    ],
)
def test_dual_clip_bounds_the_loss_of_a_bad_action_that_became_likely(ratio, advantage, loss, dual):
    got, _, acted = clipped_surrogate(tensor([[math.log(ratio)]]), tensor([[advantage]]), 0.2, 0.2, 3.0)
    assert_close(got, tensor([[loss]]))
    assert acted.item() is dual


def test_the_gradient_is_zero_where_dual_clip_acts_and_untouched_elsewhere():  # d(-r A) / d log r = -r A
    log_ratios = tensor([[math.log(5.0), math.log(2.0)]], requires_grad=True)
    loss, _, _ = clipped_surrogate(log_ratios, tensor([[-2.0, -2.0]]), 0.2, 0.2, 3.0)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratios)
    assert_close(gradient, tensor([[0.0, 4.0]]))


def test_one_ratio_per_sequence_meets_one_advantage_per_token():
    loss, clipped, dual = clipped_surrogate(tensor([[math.log(5.0)]]), tensor([[-1.0, 1.0]]), 0.2, 0.2, 3.0)
    assert_close(loss, tensor([[3.0, -1.2]]))
    assert clipped.tolist() == [[False, True]]
    assert dual.tolist() == [[True, False]]
