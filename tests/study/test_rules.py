"""Verdict rules on values made by hand, then how often they err on simulated studies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from align.study import rules
from align.study.rules import CONFIRMED, EQUIVALENT, INCONCLUSIVE, REVERSED


def arm(*seeds: float, spread: float = 0.0, prompts: int = 20) -> dict[str, dict[str, float]]:
    """One value per seed; prompts lie symmetrically around it, so that it is the seed's mean."""
    shifts = np.linspace(-spread, spread, prompts)
    return {str(s): {f"p{x}": value + shift for x, shift in enumerate(shifts)} for s, value in enumerate(seeds)}


@dataclass(frozen=True)
class Check:
    name: str
    expected: float
    found: float
    tolerance: float
    source: str = ""


ZERO = arm(0.0, 0.0, 0.0, 0.0, 0.0)
GROWN = arm(9.0, 10.0, 11.0, 10.0, 10.0)


# --- V-EFF ---


def test_a_clear_effect_in_the_claimed_direction_is_confirmed_and_in_the_other_reversed():
    found = rules.effect(GROWN, ZERO, 1, margin=5)
    assert (found.outcome, found.effect, found.seeds, found.agree) == (CONFIRMED, 10.0, 5, 5)
    assert not found.provisional and found.power is None
    t = 10 - 2.776 * math.sqrt(0.5 / 5)  # t(4) of 9, 10, 11, 10, 10; the bootstrap's interval is a little wider
    assert t - 0.1 < found.low <= t + 0.001 and 0 < found.p < 0.001
    against = rules.effect(GROWN, ZERO, -1, margin=5)
    assert against.outcome == REVERSED and against.reason.startswith("against the claim")


def test_below_the_margin_nothing_is_confirmed_however_sure():
    assert rules.effect(GROWN, ZERO, 1, margin=10.1).outcome == INCONCLUSIVE  # 90 % interval reaches beyond
    small = rules.effect(GROWN, ZERO, 1, margin=12)
    assert small.outcome == EQUIVALENT and small.low > 0


def test_the_margin_itself_is_enough():
    assert rules.effect(GROWN, ZERO, 1, margin=10).outcome == CONFIRMED


def test_one_seed_of_the_other_sign_leaves_it_open_though_the_interval_leaves_out_zero():
    mixed = arm(*[10.0] * 11, -1.0)
    found = rules.effect(mixed, arm(*[0.0] * 12), 1, margin=5)
    assert found.low > 0 and (found.outcome, found.agree) == (INCONCLUSIVE, 11)
    assert found.reason == "only 11 of 12 seeds agree in sign"


def test_an_interval_that_holds_zero_is_inconclusive_and_says_what_would_settle_it():
    found = rules.effect(arm(10.0, -4.0, 6.0), arm(0.0, 0.0, 0.0), 1, margin=1)
    assert found.outcome == INCONCLUSIVE and found.low < 0 < found.high
    assert found.agree == 2 and found.provisional
    # seed means' SD is sqrt(52); t(n-1) sqrt(52 / n) < 4 first at n = 15: 2.145 * 1.862 = 3.994
    assert "standard error 4.16" in found.power and "about 15 seeds on 20 prompts" in found.power


def test_fewer_than_five_seeds_are_provisional_and_one_seed_decides_nothing():
    assert rules.effect(arm(9.9, 10.0, 10.1), arm(0.0, 0.0, 0.0), 1, margin=1).provisional
    one = rules.effect(arm(10.0, spread=0.1), arm(0.0, spread=0.0), 1, margin=1)
    assert one.outcome == INCONCLUSIVE and one.reason == "one seed cannot say what another would give"
    assert one.low > 0  # over the prompts of that seed


def test_arms_without_a_common_prompt_or_without_spread_are_inconclusive():
    other = {"0": {"q": 1.0}, "1": {"q": 2.0}}
    assert rules.effect(arm(1.0, 2.0), other, 1, 0.1).reason == "nothing was measured in both arms"
    same = rules.effect(arm(1.0, 1.0), arm(0.0, 0.0), 1, 0.1)
    assert same.outcome == INCONCLUSIVE and "no spread" in same.reason


def test_a_metric_without_prompts_is_judged_by_its_seeds():
    a, b = {"0": 1.0, "1": 1.1, "2": 0.9}, {"0": 0.0, "1": 0.0, "2": 0.0}
    found = rules.effect(a, b, 1, margin=0.5)
    assert found.outcome == CONFIRMED and found.low == pytest.approx(1 - 4.303 * 0.1 / math.sqrt(3), abs=1e-3)


# --- V-NULL ---


def test_equivalence_needs_the_90_percent_interval_inside_the_margin():
    near = arm(0.1, -0.1, 0.05, -0.05, 0.0)  # t(4) 90 %: 2.132 * 0.0791 / sqrt(5) = 0.075
    assert rules.equivalence(near, ZERO, margin=0.1).outcome == EQUIVALENT
    assert rules.equivalence(near, ZERO, margin=0.07).outcome == INCONCLUSIVE
    far = rules.equivalence(GROWN, ZERO, margin=1)
    assert far.outcome == REVERSED and far.reason.startswith("they differ: ")


def test_holding_zero_is_never_called_no_effect():
    wide = arm(10.0, -10.0, 9.0, -9.0, 0.0)
    assert rules.equivalence(wide, ZERO, margin=1).outcome == INCONCLUSIVE


def test_a_loss_is_excluded_on_one_side_only():
    assert rules.no_loss(GROWN, ZERO, margin=0.1).outcome == EQUIVALENT  # a gain is no loss
    assert rules.no_loss(ZERO, GROWN, margin=0.1).outcome == REVERSED
    assert rules.no_loss(arm(1.0, -1.2, 0.1), arm(0.0, 0.0, 0.0), margin=0.1).outcome == INCONCLUSIVE


# --- V-DOSE ---


def ladder(*rows: tuple[float, ...]) -> dict[float, dict]:
    return {float(level): arm(*row) for level, row in enumerate(rows)}


def test_a_rising_ladder_confirms_and_a_falling_one_reverses():
    rising = ladder((0, 0.1, 0), (1, 1.1, 1), (2, 2, 2.1), (3, 3, 3.1))
    assert rules.dose(rising, 1, margin=1).outcome == CONFIRMED
    assert "rank correlation +1.00 over 4 levels" in rules.dose(rising, 1, margin=1).reason
    assert rules.dose(rising, -1, margin=1).outcome == REVERSED


def test_ends_that_differ_without_order_between_are_no_dose_response():
    jumbled = ladder((0.0, 0.1, 0.0), (5, 5.1, 5), (-5, -5, -5.1), (3, 3, 3.1))
    found = rules.dose(jumbled, 1, margin=1)
    assert found.outcome == INCONCLUSIVE and "no dose-response" in found.reason


def test_rank_correlation_of_one_seed_and_four_levels_has_p_of_two_in_24():
    rho, p = rules.rank_correlation(np.array([[1.0, 2.0, 3.0, 9.0]]))
    assert rho == pytest.approx(1.0) and p == pytest.approx(2 / 24, abs=0.006)  # 3 SE of 20,000 permutations


def test_rank_correlation_over_seeds_is_their_mean():
    rho, p = rules.rank_correlation(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
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
    found = rules.peak(curve(PARABOLA), margin=0.2)
    assert found.outcome == CONFIRMED and found.effect == pytest.approx(-0.96, abs=0.05)
    assert "20 prompts, tested on 20" in found.reason


def test_a_curve_that_still_rises_is_the_opposite_of_a_peak():
    assert rules.peak(curve({x: x for x in PARABOLA}), margin=0.2).outcome == REVERSED


def test_a_plateau_is_no_peak():
    flat = rules.peak(curve({x: 1 - math.exp(-5 * x) for x in PARABOLA}), margin=0.2)
    assert flat.outcome in (EQUIVALENT, INCONCLUSIVE)


def test_falling_from_the_first_level_on_is_no_peak_inside():
    found = rules.peak(curve({x: -x for x in PARABOLA}), margin=0.2)
    assert found.outcome == INCONCLUSIVE and "no peak inside" in found.reason


def test_a_parabola_beats_what_is_monotone_and_a_line_has_no_top():
    assert rules.bent(curve(PARABOLA)) < -50
    assert rules.bent(curve({x: x + 0.3 * x**2 for x in PARABOLA})) == math.inf
    assert rules.bent(curve({x: x / (x + 0.3) for x in PARABOLA})) > 0


def test_a_top_that_no_fit_bears_out_is_no_peak(monkeypatch):
    monkeypatch.setattr(rules, "bent", lambda levels: -3.9)
    found = rules.peak(curve(PARABOLA), margin=0.2)
    assert found.outcome == INCONCLUSIVE and found.reason.endswith("-3.9 AICc, must be <= -4")


# --- V-EXACT ---


def test_checks_within_tolerance_confirm_and_the_first_that_is_not_is_named():
    good = Check("k3 bias", 0.0, 0.001, 0.002)
    assert rules.exact([good]).outcome == CONFIRMED
    bad = rules.exact([good, Check("k2 bias", 0.25, 0.3, 0.01), Check("nan", 1.0, math.nan, 1.0)])
    assert bad.outcome == REVERSED
    assert bad.reason == "2 of 3 checks fail; k2 bias: expected 0.25 +- 0.01, found 0.3"
    assert rules.exact([]).outcome == INCONCLUSIVE


# --- Holm ---


def test_holm_undoes_what_one_of_several_contrasts_cannot_carry():
    sure, weak = rules.effect(GROWN, ZERO, 1, 5), rules.effect(arm(1, 1.2, 0.2, 1.5, 0.6), ZERO, 1, 0.5)
    assert weak.outcome == CONFIRMED and 0.015 < weak.p < 0.05
    after = rules.corrected({"a": sure, "b": weak, "c": weak, "d": weak})
    assert after["a"].outcome == CONFIRMED and after["a"].p == pytest.approx(4 * sure.p)
    assert after["b"].outcome == INCONCLUSIVE and "Holm over 4" in after["b"].reason


# --- simulated studies: how often a rule errs ---


def simulate(effect: float, seeds: int, rng: np.random.Generator, *, prompts: int = 63) -> tuple[dict, dict]:
    """Two arms: prompts that both share, seeds that move an arm by 0.2, four completions with SD 1 to a prompt."""
    base = rng.normal(0, 1, prompts)

    def one(shift: float) -> dict:
        return {
            str(s): dict(enumerate(base + shift + rng.normal(0, 0.2) + rng.normal(0, 0.5, prompts)))
            for s in range(seeds)
        }

    return one(effect), one(0.0)


def rate(outcomes: set[str], effect: float, seeds: int, margin: float, repetitions: int = 120) -> float:
    rng = np.random.default_rng(7)
    verdicts = [rules.effect(*simulate(effect, seeds, rng), 1, margin).outcome for _ in range(repetitions)]
    return sum(verdict in outcomes for verdict in verdicts) / repetitions


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_an_effect_a_verdict_of_one_is_rare(seeds):
    assert rate({CONFIRMED, REVERSED}, 0.0, seeds, margin=0.2) <= 0.075  # 5 % + 1 SE of 120; the margin makes it rarer


def test_with_a_large_effect_five_seeds_find_it():
    assert rate({CONFIRMED}, 1.0, 5, margin=0.2) >= 0.9


def test_an_effect_as_large_as_the_margin_is_not_called_none():
    assert rate({EQUIVALENT}, 0.2, 5, margin=0.2) <= 0.075
