"""Reward heads, by cases small enough to do by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_models.base import RewardError
from reward_models.heads import (
    average_weights,
    bradley_terry,
    centred,
    coordinates,
    mean,
    pair_accuracy,
    uncertainty_weighted,
    unit,
    worst_case,
)

REWARDS = np.array([[1.0, 4.0], [3.0, 0.0]])  # two members, two answers


def test_a_prompts_own_mean_is_taken_away():
    features = np.array([[[1.0], [3.0]], [[10.0], [10.0]]])
    assert centred(features).tolist() == [[[-1.0], [1.0]], [[0.0], [0.0]]]


def test_coordinates_have_variance_one_and_no_correlation_whatever_the_features_scales():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) * [1, 1, 1, 1, 1000, 1e-3]
    z = mixed @ coordinates(mixed, 4)
    assert z.T @ z / 500 == pytest.approx(np.eye(4), abs=1e-9)


def test_the_coordinate_kept_is_the_one_in_which_standardised_features_vary_most():
    a, b = np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])
    features = np.stack([a, 100 * a, b], 1)  # two of three say the same, whatever their scale
    z = (features @ coordinates(features, 1))[:, 0]
    assert abs(z) == pytest.approx(1.0) and abs(z @ a) == pytest.approx(4.0)


def test_a_feature_that_never_changes_is_left_out_and_too_high_a_rank_refused():
    features = np.stack([np.array([1.0, -1, 2, -2]), np.zeros(4)], 1)
    assert coordinates(features, 1)[1].tolist() == [0.0]
    with pytest.raises(RewardError, match="rank=2: 4 answers vary in 1 directions only; lower the rank"):
        coordinates(features, 2)


def test_without_a_ridge_three_of_four_labels_are_log_odds_of_three():
    """One coordinate, difference 1 in each pair; three labels agree, one does not: sigma(w) = 3/4."""
    w = bradley_terry(np.array([[1.0], [1.0], [1.0], [-1.0]]), ridge=0.0)
    assert w == pytest.approx([math.log(3)], abs=1e-6)


def test_the_ridge_balances_the_labels_pull():
    """At the minimum ridge * w = sum of sigma(-margin) d: of two agreeing pairs, w = 1 when ridge = 2 sigma(-1)."""
    w = bradley_terry(np.array([[1.0], [1.0]]), ridge=2 / (1 + math.e))
    assert w == pytest.approx([1.0], abs=1e-6)


def test_a_prior_is_what_the_ridge_pulls_to():
    """ridge (w - prior) = sum of sigma(-margin) d: one pair of difference 2, w = 1 from -1 when ridge = sigma(-2)."""
    found = bradley_terry(np.array([[2.0]]), 1 / (1 + math.exp(2)), np.array([-1.0]))
    assert found == pytest.approx([1.0], abs=1e-5)
    assert bradley_terry(np.zeros((0, 2)), 0.5, np.array([3.0, -1.0])).tolist() == [3.0, -1.0]


def test_the_other_way_round_labels_give_the_opposite_head():
    differences = np.random.default_rng(0).normal(size=(50, 3))
    assert bradley_terry(-differences, 1.0) == pytest.approx(-bradley_terry(differences, 1.0), abs=1e-6)


def test_the_direction_of_the_labels_is_found():
    rng = np.random.default_rng(0)
    truth, differences = np.array([2.0, -1.0, 0.0]), rng.normal(size=(4000, 3))
    labels = np.where(rng.random(4000) < 1 / (1 + np.exp(-differences @ truth)), 1.0, -1.0)
    assert bradley_terry(differences * labels[:, None], 1.0) == pytest.approx(truth, abs=0.2)


def test_a_unit_heads_rewards_have_standard_deviation_one():
    head = unit(np.array([3.0, 0.0]), np.array([[2.0, 5.0], [-2.0, 1.0]]))
    assert head.tolist() == [0.5, 0.0]
    with pytest.raises(RewardError, match="all answers the same reward"):
        unit(np.zeros(2), np.ones((3, 2)))


def test_ensembles_by_hand():
    assert mean(REWARDS).tolist() == [2.0, 2.0]
    assert worst_case(REWARDS).tolist() == [1.0, 0.0]
    assert uncertainty_weighted(REWARDS, 0.5).tolist() == [1.5, 0.0]  # variances 1 and 4


def test_averaged_weights_of_linear_heads_give_the_mean_of_their_rewards():
    rng = np.random.default_rng(0)
    heads, features = rng.normal(size=(5, 7)), rng.normal(size=(30, 7))
    assert features @ average_weights(heads) == pytest.approx(mean(heads @ features.T))


def test_accuracy_is_over_neighbours_that_count_and_differ_in_gold():
    gold = np.array([[2.0, 1.0, 5.0, 5.0, 0.0, 1.0, 9.0]])  # first better, equal, second better; one left over
    rewards = np.array([[1.0, 0.0, 0.0, 9.0, 3.0, 2.0, 0.0]])  # right, (equal), wrong
    every = np.ones_like(gold, dtype=bool)
    assert pair_accuracy(rewards, gold, every) == 0.5
    assert pair_accuracy(rewards, gold, every & (gold != 0)) == 1.0  # the wrong pair no longer counts
    assert pair_accuracy(np.zeros_like(gold), gold, every) == 0.5  # ties half
    assert math.isnan(pair_accuracy(rewards, gold, ~every))
