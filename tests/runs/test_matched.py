from __future__ import annotations

import pytest

from align.report.inference import seed_difference
from align.report.matched import levels, swapped, value_at, values_at


def test_value_lies_on_the_line_between_the_probes_around_the_level():
    assert value_at([(0, 1.0), (2, 5.0), (4, 6.0)], 1.5) == 4.0  # three quarters of the way from 1 to 5
    assert value_at([(0, 1.0), (2, 5.0), (4, 6.0)], 3) == 5.5


def test_a_probe_at_the_level_is_taken_as_it_is():
    path = [(0, 1.0), (2, 5.0), (4, 6.0)]
    assert [value_at(path, level) for level in (0, 2, 4)] == [1.0, 5.0, 6.0]


@pytest.mark.parametrize(
    "path, level", [([(0, 1.0), (2, 5.0)], 2.1), ([(1, 1.0), (2, 5.0)], 0.9), ([], 0), ([(0, 1.0)], 1)]
)
def test_nothing_is_extrapolated(path, level):
    assert value_at(path, level) is None


def test_a_path_that_falls_back_counts_where_it_first_reached_the_level():
    assert value_at([(0, 0.0), (4, 4.0), (1, 10.0), (5, 20.0)], 2) == 2.0


def test_a_path_that_starts_above_the_level_reaches_it_when_it_comes_from_below():
    assert value_at([(3, 0.0), (1, 10.0), (3, 20.0)], 2) == 15.0


def test_arms_are_compared_at_the_largest_kl_of_all_and_at_half_of_it():
    a = {"0": [(0, 0.0), (6, 1.0)], "1": [(0, 0.0), (9, 1.0), (8, 1.0)]}
    b = {"0": [(0, 0.0), (4, 2.0), (3, 2.0)]}
    assert levels([a, b]) == (2.0, 4.0)
    assert levels([a]) == (3.0, 6.0)


def test_half_way_is_counted_from_the_start_that_is_furthest():  # gold rewards do not start at 0, nor all alike
    assert levels([{"0": [(0, 0.0), (4, 1.0)]}, {"0": [(2, 0.0), (6, 1.0)]}]) == (3.0, 4.0)


@pytest.mark.parametrize("arms", [[], [{}], [{"0": [(0, 1.0), (3, 1.0)]}, {"0": [(0, 1.0), (0, 2.0)]}], [{"0": []}]])
def test_where_something_did_not_move_there_is_no_common_level(arms):
    assert levels(arms) == ()


def test_every_seed_has_a_value_at_every_level():
    arm = {"0": [(0, 0.0), (5, 1.0)], "1": [(0.5, 0.0), (0.2, 3.0), (4, 2.0)]}
    for level in levels([arm]):
        assert set(values_at(arm, level)) == {"0", "1"}
    assert set(values_at(arm, 4.5)) == {"0"}


def test_difference_at_matched_kl_is_over_seeds():  # at KL 2: 1 and 3 against 0 and 0
    a = {"0": [(0, 0.0), (4, 2.0)], "1": [(0, 0.0), (2, 3.0)]}
    b = {"0": [(0, 0.0), (2, 0.0)], "1": [(0, 0.0), (3, 0.0)]}
    _, top = levels([a, b])
    found = seed_difference(values_at(a, top), values_at(b, top))
    assert (top, found.mean, found.seeds, found.by) == (2, 2.0, 2, "seeds")
    assert found.high - found.mean == pytest.approx(12.706, abs=1e-3)  # t(0.975, 1) and s / sqrt(2) = 1


def test_swapped_tells_the_kl_at_which_a_gold_reward_is_first_reached():
    arm = {"0": [(0, 0.0), (1, 0.5), (5, 0.4), (9, 0.6)]}
    assert values_at(swapped(arm), 0.25) == {"0": 0.5}
    assert values_at(swapped(arm), 0.5) == {"0": 1.0}
    assert values_at(swapped(arm), 0.55) == pytest.approx({"0": 8.0})
