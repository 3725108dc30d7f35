"""The best of n, by every subset of n and by the numbers of Gao et al.'s axis."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.best_of_n import expected_best, kl_bound


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
