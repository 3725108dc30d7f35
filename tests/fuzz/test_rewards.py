"""Any text a model may write, and any formula a user may type: a finite number, or a refusal, within a second."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from reward_models.annotator import WEIGHTS, GoldScale, gold_source
from reward_models.base import RewardError, RewardSource, Sample, evaluate
from reward_models.formula import parse
from reward_models.instructions import prompt_specs
from reward_models.verifiers import constraint_kept, last_integer
from tests.fuzz import bad
from tests.fuzz.trial import TIMES, attempt, fuzzed

LONG = 100_000 if TIMES > 1 else 30_000  # characters
SPECS = {spec.info["constraint"]: spec.info for spec in prompt_specs()}
SCALE = GoldScale(dict.fromkeys(WEIGHTS, 0.0), dict.fromkeys(WEIGHTS, 1.0), 10.0, 60.0, 30.0, 0.01, 1.0, 20.0)
# Whatever a pattern of reward_models/ or align/ repeats, and what it stumbles over behind it.
UNITS = ("a", "1", " ", ".", "!", "?", "-", ",", "(", ")", "[", "]", "<", "<<", ">", "*", "_", "'", '"', "\n",
         "\t", "\r\n", "#",
         "$", "=", "/", "\u2212", "\u2019", "1,000", ",000", "1.", ".1", "-1", "a.b", "a'", "a-", "x1.", "yes ",
         "- a\n", "1. ", '."',
         ". ", ".)", "e.g.", "J. ", "####", "\u0130", "\u00df", "\u4f60", "\U0001f600", "\u0660", "\u00b2", "\x00",
         "\x85", "\u2028",
         "\ud800", "e\u0301", "\ufeff", "honey ", "bees ")  # fmt: skip


def judged(target: str, source: RewardSource, text: str, info: Mapping[str, Any]) -> None:
    sample = Sample("Why?", text, (1,), tuple(range(5)), True, info)
    values = attempt(target, lambda: evaluate("r", source, [sample]), RewardError, most_s=1)
    assert values is None or (len(values) == 1 and math.isfinite(values[0]))


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_long_runs_of_one_thing_take_less_than_a_second(unit):
    """Alone, and before and behind something else: what makes a careless pattern quadratic."""
    run = unit * (LONG // len(unit))
    for text in (run, "@" + run + "@", "1" + run + "1", "yes" + run + "a"):
        judged("verifier, long texts", last_integer, text, {"answer": 12})
        judged("gold, long texts", gold_source(SCALE), text, SPECS["one_sentence"])
        for info in SPECS.values():
            attempt("constraints, long texts", lambda text=text, info=info: constraint_kept(text, info), most_s=1)


@fuzzed(300)
def test_mixed_texts(rng):
    parts = [
        rng.choice((rng.choice(UNITS) * rng.randrange(1, 2000), bad.text(rng))) for _ in range(rng.randrange(1, 6))
    ]
    judged("verifier", last_integer, "".join(parts), {"answer": 12})
    judged("gold", gold_source(SCALE), "".join(parts), SPECS[rng.choice(list(SPECS))])


@fuzzed(200)
def test_infos_that_say_something_else(rng):
    """What a prompt's info holds is the user's own where data is."""
    info = bad.changed(rng, {"answer": 12, **SPECS[rng.choice(list(SPECS))]}, rng.randrange(1, 3))
    source = rng.choice((last_integer, gold_source(SCALE)))
    judged("what a prompt's info says", source, "Yes, honey bees make 12.", info)


@fuzzed(300)
def test_formulas(rng):
    parts = (
        "learned",
        "gold",
        "a.b:c",
        "+",
        "-",
        "*",
        "0.01",
        "1e5",
        ".",
        "1.",
        " ",
        "9" * 400,
        "_",
        ":",
        "none",
        bad.text(rng),
    )
    formula = "".join(rng.choice(parts) * rng.choice((1, 1, 2, 500)) for _ in range(rng.randrange(7)))
    weights = attempt("formulas", lambda: parse(formula), ValueError, most_s=1)
    assert weights is None or all(math.isfinite(weight) for weight in weights.values()), formula
