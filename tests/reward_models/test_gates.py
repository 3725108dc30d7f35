from __future__ import annotations

import math

import pytest

from reward_models.annotator import Answer
from reward_models.gates import Gate, length_correlation, oracle_gain, pool_gates, rm_gate
from tests.reward_models.scales import plain_scale

SCALE = plain_scale(sd_gold=0.5)
INFO = {"words": ("bee",), "keywords": ("honey",), "constraint": "one_sentence", "argument": None}


def group(good: int, size: int = 8, truncated: int = 0, tokens: int = 20) -> list[Answer]:
    """`good` answers of gold 1.4 (constraint kept, clean end), the others of gold 0."""
    texts = ["One sentence."] * good + ["Two of them. And no end"] * (size - good)
    return [Answer(text, tokens + i, i >= truncated, INFO) for i, text in enumerate(texts)]


def named(gates: list[Gate]) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates}


def test_truncation_is_counted_over_answers_and_prompt_by_prompt():
    gates = named(pool_gates([group(4, truncated=2), group(4), group(4), group(4, truncated=1)], SCALE))
    assert gates["truncation"].value == pytest.approx(3 / 32)
    assert gates["truncation"].passed
    assert gates["truncation/prompts"].value == pytest.approx(1 / 4)  # one prompt lost two or more of eight
    assert not gates["truncation/prompts"].passed


def test_a_constraint_that_is_always_or_never_kept_fails_its_gate():
    assert named(pool_gates([group(4)], SCALE))["constraint/one_sentence"].passed
    for good in (0, 8):
        gates = named(pool_gates([group(good)], SCALE))
        assert not gates["constraint/one_sentence"].passed and not gates["constraint"].passed


def test_the_oracle_gain_is_best_of_eight_less_the_mean_in_within_prompt_sds():
    # One good answer of gold 1.4 among eight: (1.4 - 1.4 / 8) / 0.5
    assert oracle_gain([group(1)], SCALE) == pytest.approx((1.4 - 0.175) / 0.5)
    assert oracle_gain([group(8)], SCALE) == pytest.approx(0.0)


def test_what_cannot_be_measured_has_not_passed():
    assert math.isnan(oracle_gain([group(1, size=4)], SCALE))
    assert not named(pool_gates([group(1, size=4)], SCALE))["oracle/best_of_8"].passed


def test_length_correlation_sees_differences_within_prompts_only():
    longer_prompt_better = [group(8, tokens=60), group(0, tokens=20)]
    assert math.isnan(length_correlation(longer_prompt_better, SCALE))  # gold never varies within a prompt
    assert length_correlation([group(4)], SCALE) == pytest.approx(
        -math.sqrt(16 / 21)
    )  # the good ones are the shorter half


def test_the_accuracy_gate_asks_60_of_a_weak_reward_and_68_of_a_strong_one():
    assert rm_gate(0.60).passed and not rm_gate(0.59).passed
    assert rm_gate(0.68, "strong").passed and not rm_gate(0.67, "strong").passed
    assert rm_gate(0.6).threshold == ">= 0.6"
    assert Gate("x", 0.5, 0.25, 0.75).threshold == "0.25 to 0.75"
    assert Gate("x", 0.5, high=0.75).threshold == "<= 0.75"


def test_the_thresholds_of_a_pool_are_those_that_the_design_states():
    gates = named(pool_gates([group(4)], SCALE))
    assert {name: gate.threshold for name, gate in gates.items()} == {
        "truncation": "<= 0.1",
        "truncation/prompts": "<= 0.1",
        "constraint": "0.25 to 0.75",
        "constraint/one_sentence": "0.05 to 0.95",
        "oracle/best_of_8": ">= 1",
        "gold/length_correlation": "-0.1 to 0.1",
    }
