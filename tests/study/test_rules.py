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
    found = rules.effect(arm(10.0, 2.0, 6.0), arm(0.0, 0.0, 0.0), 1, margin=1)
    assert found.outcome == INCONCLUSIVE and found.low < 0 < found.high
    assert found.agree == 3 and found.provisional
    # seed means' SD is 4; t(n-1) 4 / sqrt(n) < 6 first at n = 5: 2.776 * 1.789 = 4.97 (n = 4: 6.36)
    assert "standard error 2.31" in found.power and "about 5 seeds on 20 prompts" in found.power
    assert found.power.endswith("to decide an effect as large as seen (even odds)")


def test_seeds_that_disagree_are_not_outvoted_by_more_of_them():
    found = rules.effect(arm(*[10.0] * 11, -1.0), arm(*[0.0] * 12), 1, margin=5)
    assert found.outcome == INCONCLUSIVE and "would have been decided" not in found.power
    assert found.power.endswith("seeds must agree in sign, which more of them beside these cannot mend")
    small = rules.effect(arm(0.9, -0.8, 0.3), arm(0.0, 0.0, 0.0), 1, margin=1)  # to call it none they need not agree
    assert small.outcome == INCONCLUSIVE and "to call it none (even odds)" in small.power


def test_seeds_that_have_the_sign_are_those_of_the_effect_not_the_most():
    found = rules.effect(arm(10.0, -1.0, -1.0, -1.0, -1.0), ZERO, 1, margin=0.5)
    assert found.effect == pytest.approx(1.2) and found.agree == 1


def test_two_arms_at_one_floor_show_nothing_and_not_that_they_are_equivalent():
    for found in (rules.effect(ZERO, ZERO, 1, 0.1), rules.equivalence(arm(1.0, 2.0), arm(1.0, 2.0), 0.1)):
        assert found.outcome == INCONCLUSIVE and found.reason.startswith("both arms are the same in every seed")


def test_how_many_prompts_an_interval_is_over_is_told():
    assert rules.effect(GROWN, ZERO, 1, margin=5).prompts == 20
    assert rules.effect({"0": 1.0, "1": 1.1}, {"0": 0.0, "1": 0.0}, 1, margin=0.5).prompts == 0


def test_a_loss_is_planned_on_one_side():
    """Mean +0.8 with a margin of 1: 1.8 from the loss. SD 2, so t(n-1, 95 %) 2 / sqrt(n) < 1.8 first at n = 6: 1.645
    (n = 5: 1.907), where a plan to call it none would have 0.2."""
    found = rules.no_loss(arm(2.8, -1.2, 0.8), arm(0.0, 0.0, 0.0), margin=1)
    assert found.outcome == INCONCLUSIVE and "about 6 seeds on 20 prompts to exclude it" in found.power


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
