"""What every exact study owes: checks that hold, tables for a figure, a failed check when the product is wrong."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from align.exact import Check, Exact, furthest, relative
from align.maths import advantages, best_of_n, kl, policy
from align.run import CONF
from align.study.exact import judged
from align.study.spec import load

ROOT = Path(__file__).resolve().parents[2]
STUDIES = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((CONF / "study").glob("*.yaml"))}
EXACT = [name for name, study in STUDIES.items() if study["kind"] == "exact"]


def compute(name: str) -> Exact:
    return importlib.import_module(STUDIES[name]["module"]).compute()


@cache
def computed(name: str) -> tuple[Exact, float]:
    started = time.process_time()
    return compute(name), time.process_time() - started


def failed(found: Exact) -> list[str]:
    return [check.name for check in found.checks if not check.holds]


def table(study: str, name: str) -> list[dict]:
    return computed(study)[0].tables[name]


def row(study: str, name: str, **where) -> dict:
    (found,) = [row for row in table(study, name) if where.items() <= row.items()]
    return found


def test_these_studies_are_exact():
    assert {"kl_estimators", "grpo_bias", "gae_lambda", "baseline_variance", "goodhart_tails", "dapo_tricks",
            "lora_init"} <= set(EXACT)  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_every_check_holds_within_ten_seconds_of_computing(name):
    found, seconds = computed(name)
    assert len(found.checks) >= 11 and failed(found) == []
    assert seconds < 10


@pytest.mark.parametrize("name", EXACT)
def test_tables_are_rows_of_finite_numbers_with_the_same_columns(name):
    for title, rows in computed(name)[0].tables.items():
        assert len(rows) >= 2, title
        for entry in rows:
            assert list(entry) == list(rows[0]), title
            assert all(isinstance(v, str) or (isinstance(v, int | float) and math.isfinite(v)) for v in entry.values())


@pytest.mark.parametrize("name", EXACT)
def test_names_of_checks_tell_them_apart_and_say_where_the_number_is_from(name):
    checks = computed(name)[0].checks
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.source for check in checks)


@pytest.mark.parametrize("name", EXACT)
def test_its_verdict_can_be_written(name):
    """kl_estimators once could not: numpy's booleans are none of JSON's."""
    written = json.loads(judged(load(CONF / "study" / f"{name}.yaml"), computed(name)[0]).text)
    assert written["outcome"] == "CONFIRMED"
    assert all(check["holds"] is True for check in written["checks"])


@pytest.mark.parametrize("name", EXACT)
def test_it_says_the_same_twice(name):
    assert compute(name) == computed(name)[0]


@pytest.mark.parametrize("name", EXACT)
def test_the_file_says_what_is_asked_claimed_and_not_shown(name):
    study = STUDIES[name]
    assert list(study) == ["name", "question", "claim", "literature", "kind", "module", "not_shown"]
    assert study["name"] == name and study["module"] == f"align.exact.{name}"
    assert set(study["question"]) == {"en", "zh"}


def test_reading_a_study_imports_no_torch():
    modules = ", ".join(STUDIES[name]["module"] for name in EXACT)
    done = subprocess.run([sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr


def test_a_check_holds_within_its_tolerance_and_a_nan_never_does():
    assert Check("", 2.0, 2.1, 0.1 + 1e-9, "").holds
    assert not Check("", 2.0, 2.1, 0.09, "").holds
    assert not Check("", 2.0, math.nan, 1e9, "").holds
    assert relative("", -2.0, -2.03, 0.02, "").holds
    assert not relative("", -2.0, -2.05, 0.02, "").holds
    assert furthest([(1.0, 1.1), (5.0, 4.0), (0.0, 0.5)]) == (5.0, 4.0)


# Numbers by hand.


def test_printed_table_of_the_estimators():
    of = {(r["estimator"], r["shift"]): (r["bias"], r["std"]) for r in table("kl_estimators", "values")}
    assert of["k1", 0.1] == pytest.approx((0, 20), abs=1e-9)
    assert of["k2", 1.0] == pytest.approx((0.25, 3**0.5))  # KL .5: (1 + 1/4) / 2 = .625; sqrt(2 + 1)
    assert of["k3", 1.0] == pytest.approx((0, 2 * (math.e - 2) ** 0.5), abs=1e-9)
    drawn = row("kl_estimators", "values", estimator="k3", shift=1.0)
    assert drawn["std_drawn"] == pytest.approx(drawn["std"], rel=0.02)


def test_k1_as_a_loss_has_no_gradient_and_k2_in_the_reward_means_nothing():
    assert row("kl_estimators", "gradients", estimator="k1", where="loss")["norm"] < 1e-15
    strange = row("kl_estimators", "gradients", estimator="k2", where="reward")
    assert min(value for key, value in strange.items() if key.startswith("distance")) > 0.1


def test_small_groups_know_little_of_the_preference_for_hard_prompts():
    def ratio(K: int) -> float:
        return row("grpo_bias", "groups", K=K, p=0.1)["grpo"] / row("grpo_bias", "groups", K=K, p=0.5)["grpo"]

    assert ratio(4) < 1.05 < 1.25 < ratio(8) < ratio(16) < ratio(64) < 5 / 3
    assert row("grpo_bias", "prompts", p=0.1)["grpo"] == pytest.approx(10 / 3, rel=0.002)


def test_half_a_critic_over_eight_tokens():
    found = row("gae_lambda", "bias and variance", kappa=0.5, gamma=1.0, **{"lambda": 0.5})
    assert found["bias"] == pytest.approx(0.5 + 0.5**8 - 1)
    assert row("gae_lambda", "bias and variance", kappa=0.0, gamma=1.0, **{"lambda": 1.0})["bias"] == pytest.approx(0)
    # lambda = gamma = 1: every token's noise, (.5^2 + 1.5^2 + .75^2 + 1.25^2 + .5^2 + 1 + 2^2) / 4
    one = row("gae_lambda", "bias and variance", kappa=0.5, gamma=1.0, **{"lambda": 1.0})
    assert one["variance"] == pytest.approx(9.875 / 4)


def test_a_coin_needs_four_siblings_to_beat_no_baseline():
    """p = 1/2: without one 1/16 / k; leave-one-out (1/16 - (k - 3)/(k - 1)/16) / k."""
    for k, without, with_siblings in ((2, 1 / 32, 1 / 16), (4, 1 / 64, 1 / 96), (8, 1 / 128, 2 / 7 / 128)):
        found = row("baseline_variance", "one coin", p=0.5, k=k)
        assert found["variance without"] == pytest.approx(without)
        assert found["variance"] == pytest.approx(with_siblings)


def test_light_errors_rise_and_the_other_two_turn():
    gold = {name: [r["gold"] for r in table("goodhart_tails", "gold") if r["error"] == name]
            for name in ("light", "heavy", "extremal")}  # fmt: skip
    assert gold["light"] == sorted(gold["light"]) and gold["light"][1] == pytest.approx(math.pi**-0.5 / 2**0.5)
    for name in ("heavy", "extremal"):
        top = gold[name].index(max(gold[name]))
        assert 2 < top < 6 and gold[name][-1] < 0.01
    for r in table("goodhart_tails", "drawn"):
        assert abs(r["drawn"] - r["gold"]) < 3 * r["standard error"]


def test_groups_of_four_at_one_in_ten():
    found = row("dapo_tricks", "no signal", G=4, p=0.1)
    assert found["share"] == pytest.approx(0.6562)  # .0001 + .6561
    assert found["share after 3 draws"] == pytest.approx(0.6562**3)


def test_first_step_of_each_half():
    layer = {r["init"]: r for r in table("lora_init", "one layer")}
    assert layer["b_random"]["|moved|"] / layer["default"]["|moved|"] > 8
    model = {r["init"]: r for r in table("lora_init", "tiny model")}
    assert model["zeros"]["loss"] == model["zeros"]["loss after 3 steps"] > model["default"]["loss after 3 steps"]
    assert model["both_random"]["KL to the base"] > 1e-3 > 1e-8 > model["default"]["KL to the base"]


# A product that is wrong is reported.


def gae_off_by_one(rewards, values, mask, gamma, lam):
    return ORIGINAL_GAE(rewards.roll(1, -1), values, mask, gamma, lam)


ORIGINAL_GAE, ORIGINAL_AGGREGATE = advantages.gae, policy.aggregate


def mean_of_all(losses, mask, how, denominators):
    return ORIGINAL_AGGREGATE(losses, mask, "token_mean", denominators)


def population_std(rewards, eps=1e-4):
    centered = advantages.group_centered(rewards)
    return centered / (rewards.var(-1, keepdim=True, correction=0) + eps)


def siblings_and_itself(rewards):
    return advantages.group_centered(rewards)


WRONG = [
    ("kl_estimators", kl.ESTIMATORS, "k3", lambda p, q: (p - q).expm1() - (p - q), "KL(q||p)"),
    ("kl_estimators", kl.ESTIMATORS, "k2", lambda p, q: (p - q).square(), "bias/KL of k2"),
    ("kl_estimators", kl.ESTIMATORS, "k1", lambda p, q: (p - q).clamp(min=0), "bias/KL of k1"),
    ("grpo_bias", advantages.GROUP, "group_normalized", population_std, "/std: weight"),
    ("grpo_bias", "align.trainers.losses.aggregate", None, mean_of_all, "grpo: a token"),
    ("gae_lambda", "align.maths.advantages.gae", None, gae_off_by_one, "weight of the reward at token 1"),
    ("baseline_variance", advantages.GROUP, "leave_one_out", siblings_and_itself, "leave-one-out, k = 2"),
    ("goodhart_tails", "align.maths.best_of_n.kl_bound", None, math.log, "KL of the best of 4"),
    ("goodhart_tails", "align.maths.best_of_n.expected_best", None,
     lambda proxy, gold, n: best_of_n.kl_bound(n) + gold.mean(-1), "mean of the estimator of the best of 2"),
    ("dapo_tricks", "align.trainers.losses.aggregate", None, mean_of_all, "grpo: share of the step"),
    ("lora_init", "align.lora.STARTS", "b_random", (), "b_random: the start is the base"),
    ("lora_init", "align.lora.STARTS", "zeros", ("lora_A",), "zeros: nothing moves"),
]  # fmt: skip


@pytest.mark.parametrize(("study", "owner", "key", "wrong", "named"), WRONG, ids=[f"{w[0]}-{w[4]}" for w in WRONG])
def test_a_wrong_product_fails_the_check_that_is_about_it(study, owner, key, wrong, named, monkeypatch):
    if isinstance(owner, str) and key is None:
        monkeypatch.setattr(owner, wrong)
    else:
        target = importlib.import_module("align.lora").STARTS if isinstance(owner, str) else owner
        monkeypatch.setitem(target, key, wrong)
    assert any(named in name for name in failed(compute(study)))


def test_a_clip_that_is_symmetric_again_fails(monkeypatch):
    def symmetric(log_ratios, advantages, low, high, dual=None):
        return ORIGINAL_CLIP(log_ratios, advantages, low, low, dual)

    monkeypatch.setattr(policy, "clipped_surrogate", symmetric)
    assert "clip-higher: a probability of 0.01 becomes at most" in failed(compute("dapo_tricks"))


def test_a_silent_group_that_goes_unnoticed_fails(monkeypatch):
    from align.trainers import estimators

    original = estimators.estimate

    def deaf(*args):
        from dataclasses import replace

        found = original(*args)
        return replace(found, stats={**found.stats, "group/zero_signal": 0.0})

    monkeypatch.setattr(estimators, "estimate", deaf)
    assert any("without a signal" in name for name in failed(compute("dapo_tricks")))


ORIGINAL_CLIP = policy.clipped_surrogate


def test_torch_draws_are_left_as_they_were():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    compute("lora_init")
    assert torch.equal(torch.random.get_rng_state(), before)
