"""Rules over levels of one setting, on values made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.study import levels, rules
from align.study.rules import CONFIRMED, EQUIVALENT, INCONCLUSIVE, REVERSED
from tests.study.test_rules import arm

# --- V-DOSE ---


def ladder(*rows: tuple[float, ...]) -> dict[float, dict]:
    return {float(level): arm(*row) for level, row in enumerate(rows)}


def test_a_rising_ladder_confirms_and_a_falling_one_reverses():
    rising = ladder((0, 0.1, 0), (1, 1.1, 1), (2, 2, 2.1), (3, 3, 3.1))
    assert levels.dose(rising, 1, margin=1).outcome == CONFIRMED
    assert "rank correlation +1.00 over 4 levels" in levels.dose(rising, 1, margin=1).reason
    assert levels.dose(rising, -1, margin=1).outcome == REVERSED


def test_ends_that_differ_without_order_between_are_no_dose_response():
    jumbled = ladder((0.0, 0.1, 0.0), (5, 5.1, 5), (-5, -5, -5.1), (3, 3, 3.1))
    found = levels.dose(jumbled, 1, margin=1)
    assert found.outcome == INCONCLUSIVE and "no dose-response" in found.reason


def wobbling(*means: float) -> dict[float, dict]:
    """Levels whose five seeds differ by 0.1 in another order each."""
    return {float(x): arm(*(mean + 0.1 * ((s * (x + 1)) % 5 - 2) for s in range(5))) for x, mean in enumerate(means)}


def test_equal_ends_say_nothing_of_the_levels_between():
    found = levels.dose(wobbling(0, 5, 5, 0), 1, margin=0.5)
    assert found.outcome == INCONCLUSIVE and found.reason.endswith("not shown to be so: the levels 1, 2")
    flat = levels.dose(wobbling(0, 0.02, 0.01, 0), 1, margin=0.5)
    assert flat.outcome == EQUIVALENT and flat.reason.endswith("at all 4 levels")


def test_the_p_of_a_dose_is_the_larger_of_its_two_tests():
    rising = ladder((0, 0.1, 0), (1, 1.1, 1), (2, 2, 2.1), (3, 3, 3.1))
    ends = rules.effect(rising[3.0], rising[0.0], 1, margin=1)
    _, p = levels.rank_correlation(np.array([[0, 1, 2, 3], [0.1, 1.1, 2, 3], [0, 1, 2.1, 3.1]], dtype=float))
    assert levels.dose(rising, 1, margin=1).p == max(p, ends.p)


def test_rank_correlation_of_one_seed_and_four_levels_has_p_of_two_in_24():
    rho, p = levels.rank_correlation(np.array([[1.0, 2.0, 3.0, 9.0]]))
    assert rho == pytest.approx(1.0) and p == pytest.approx(2 / 24, abs=0.006)  # 3 SE of 20,000 permutations


def test_rank_correlation_over_seeds_is_their_mean():
    rho, p = levels.rank_correlation(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    assert rho == pytest.approx(0.0) and p == 1.0


# --- V-PEAK ---


def curve(points: dict[float, float], noise: float = 0.02) -> dict[float, dict]:
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 0.3, 40)
    return {
        x: {str(s): {f"p{i:02}": y + p + rng.normal(0, noise) for i, p in enumerate(prompts)} for s in range(5)}
        for x, y in points.items()
    }


PARABOLA = {x: x * (2 - x) for x in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)}  # top at 1


def test_an_interior_top_that_falls_again_is_a_peak():
    found = levels.peak(curve(PARABOLA), margin=0.2)
    assert found.outcome == CONFIRMED and found.effect == pytest.approx(-0.96, abs=0.05)
    assert "20 prompts, tested on 20" in found.reason


def test_a_curve_that_still_rises_is_the_opposite_of_a_peak():
    assert levels.peak(curve({x: x for x in PARABOLA}), margin=0.2).outcome == REVERSED


def test_a_plateau_is_no_peak():
    flat = levels.peak(curve({x: 1 - math.exp(-5 * x) for x in PARABOLA}), margin=0.2)
    assert flat.outcome in (EQUIVALENT, INCONCLUSIVE)


def test_falling_from_the_first_level_on_is_no_peak_inside():
    found = levels.peak(curve({x: -x for x in PARABOLA}), margin=0.2)
    assert found.outcome == INCONCLUSIVE and "no peak inside" in found.reason


def test_a_parabola_beats_what_is_monotone_and_a_line_has_no_top():
    assert levels.bent(curve(PARABOLA)) < -50
    assert levels.bent(curve({x: x + 0.3 * x**2 for x in PARABOLA})) == math.inf
    assert levels.bent(curve({x: x / (x + 0.3) for x in PARABOLA})) > 0


def test_a_top_that_no_fit_bears_out_is_no_peak(monkeypatch):
    monkeypatch.setattr(levels, "bent", lambda levels: -3.9)
    found = levels.peak(curve(PARABOLA), margin=0.2)
    assert found.outcome == INCONCLUSIVE and found.reason.endswith("-3.9 AICc, must be <= -4")


def test_a_fit_that_cannot_be_compared_is_no_peak(monkeypatch):
    monkeypatch.setattr(levels, "bent", lambda levels: math.nan)
    assert levels.peak(curve(PARABOLA), margin=0.2).outcome == INCONCLUSIVE
