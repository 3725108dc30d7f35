"""The best of n, by every subset of n and by the numbers of Gao et al.'s axis."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.best_of_n import best_pair_accuracy, expected_best, kl_bound, pair_weights


@pytest.mark.parametrize(
    ("n", "nats"), [(1, 0), (2, 0.193), (4, 0.636), (16, 1.835), (64, 3.175), (1000, 5.909), (60000, 10.002)]
)
def test_kl_bound_at_the_n_that_are_used(n, nats):
    assert kl_bound(n) == pytest.approx(nats, abs=5e-4)


def test_best_of_two_of_three_is_the_highest_twice_out_of_three_times():
    # pairs by proxy (1, 2, 3): best are 2, 3, 3, so gold is (20 + 5 + 5) / 3
    assert float(expected_best(tensor([3.0, 1.0, 2.0]), tensor([5.0, 100.0, 20.0]), 2)) == pytest.approx(10)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_it_is_the_mean_over_all_subsets(n):
    generator = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(2, 7, generator=generator, dtype=torch.double)
    best = [gold[list(subset)][proxy[list(subset)].argmax()] for subset in combinations(range(7), n)]
    assert_close(expected_best(proxy, gold, n), torch.stack(best).mean(), rtol=0, atol=1e-12)


def test_equal_proxies_share_what_they_win():
    """A verifier's 0 and 1: the order in which rows happen to stand must not matter."""
    proxy, gold = tensor([1.0, 0.0, 1.0, 0.0]), tensor([4.0, 7.0, 2.0, 9.0])
    # of the 6 pairs 5 hold a 1: gold 3 on average; one has two zeros: 8
    assert float(expected_best(proxy, gold, 2)) == pytest.approx((5 * 3 + 8) / 6)
    assert float(expected_best(proxy.flip(0), gold.flip(0), 2)) == pytest.approx((5 * 3 + 8) / 6)


def test_over_every_sample_of_four_it_is_unbiased():
    """Chances .5, .3, .2: the best of 2 is the top one with 1 - .8^2 = .36, the middle one with .39."""
    chances, gold = tensor([0.5, 0.3, 0.2], dtype=torch.double), tensor([1.0, 5.0, -2.0], dtype=torch.double)
    total = 0.0
    for drawn in product(range(3), repeat=4):
        index = tensor(drawn)
        total += float(chances[index].prod() * expected_best(index.double(), gold[index], 2))
    assert total == pytest.approx(0.25 * 1 + 0.39 * 5 + 0.36 * -2)


def test_prompts_are_rows():
    proxy, gold = torch.arange(8.0).view(2, 4), torch.arange(8.0).view(2, 4)
    assert_close(expected_best(proxy, gold, 4), tensor([3.0, 7.0], dtype=torch.double))


def test_bests_of_two_pairs_of_four_are_the_highest_and_one_of_the_two_next():
    # three ways to part 1, 2, 3, 4 into pairs: 12|34, 13|24, 14|23; the bests are 2 and 4, 3 and 4, 3 and 4
    expected = [[0.0] * 4, [0.0] * 4, [0.0] * 4, [0.0, 1 / 3, 2 / 3, 0.0]]
    assert_close(tensor(pair_weights(2, 4)), tensor(expected))


@pytest.mark.parametrize(("n", "samples"), [(1, 5), (2, 6), (3, 7)])
def test_it_is_the_mean_over_all_pairs_of_disjoint_groups(n, samples):
    generator = torch.Generator().manual_seed(0)
    chooser, judge, gold = torch.randn(3, samples, generator=generator, dtype=torch.double)
    agreed = []
    for one in combinations(range(samples), n):
        for other in combinations(sorted({*range(samples)} - {*one}), n):
            a, b = (max(group, key=lambda i: float(chooser[i])) for group in (one, other))
            agreed.append(float((judge[a] - judge[b]) * (gold[a] - gold[b]) > 0))
    assert float(best_pair_accuracy(chooser, judge, gold, n)) == pytest.approx(sum(agreed) / len(agreed))


def test_pairs_that_judge_or_gold_cannot_tell_apart_count_half():
    two = tensor([[1.0, 2.0]] * 4)
    judge, gold = tensor([[1.0, 2], [2, 1], [1, 1], [1, 2]]), tensor([[0.0, 5], [0, 5], [0, 5], [3, 3]])
    assert best_pair_accuracy(two, judge, gold, 1).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_over_every_sample_of_four_the_accuracy_is_unbiased():
    """Two values, each with 1/2, gold 0 and 1, chooser and judge right: the bests of 2 differ with 2 * 3/4 * 1/4."""
    total = 0.0
    for drawn in product((0.0, 1.0), repeat=4):
        total += float(best_pair_accuracy(tensor(drawn), tensor(drawn), tensor(drawn), 2)) / 16
    assert total == pytest.approx(0.375 + 0.625 / 2)
