import math

import pytest
import torch

from align.maths.control import Moments, adapted_coef


@pytest.mark.parametrize(
    ("kl", "coef", "bounded"),
    [
        (6.6, 0.101, False),  # 10% above the target: up by 10% x 64 / 640
        (5.4, 0.099, False),
        (6.0, 0.1, False),  # the fixed point
        (60.0, 0.102, True),  # 900% above counts as 20%
        (0.0, 0.098, True),
        (-3.0, 0.098, True),  # an estimate of a KL can be negative
    ],
)
def test_a_coefficient_of_a_tenth_with_target_six_by_hand(kl, coef, bounded):
    got, acted = adapted_coef(0.1, kl, target=6.0, completions=64, horizon=640.0)
    assert got == pytest.approx(coef, rel=1e-12)
    assert acted is bounded


def test_moments_by_hand():  # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9
    assert Moments().with_([1.0, 2.0, 6.0]) == Moments(3, 3.0, 14.0)
    assert Moments(3, 3.0, 14.0).std == math.sqrt(14 / 3)


def test_moments_in_pieces_are_moments_at_once():
    numbers = (5 + 3 * torch.randn(50, dtype=torch.float64)).tolist()
    pieces = Moments()
    for start, stop in ((0, 1), (1, 20), (20, 20), (20, 50)):  # one number, many, none, many
        pieces = pieces.with_(numbers[start:stop])
    whole = Moments().with_(numbers)
    assert pieces.count == whole.count == 50
    assert (pieces.mean, pieces.deviations) == pytest.approx((whole.mean, whole.deviations), rel=1e-12)


def test_a_high_level_does_not_drown_the_spread():  # 0, 1, 2 deviate by 1 + 0 + 1; squares of 1e9 lose that
    assert Moments().with_([1e9]).with_([1e9 + 1, 1e9 + 2]).deviations == pytest.approx(2.0, rel=1e-6)


def test_dividing_by_the_spread_changes_nothing_while_there_is_none():
    for numbers in ([], [7.0], [2.0, 2.0]):
        assert Moments().with_(numbers).std == 1.0


def test_equal_numbers_that_are_not_binary_fractions_have_no_spread_either():
    for numbers in ([0.1] * 3, [0.7] * 12):  # nor is 0.7 x 12 / 12 equal to 0.7
        assert Moments().with_(numbers).with_(numbers[:2]).std == 1.0
