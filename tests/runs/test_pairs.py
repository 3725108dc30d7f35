"""Arm against arm, at the end and at a matched level: which words may be said."""

from __future__ import annotations

import csv
import io
import json

import pytest

from align.report import levels, pairs
from align.report.arms import group, load
from align.report.claims import Claim, judged
from align.report.inference import Difference
from align.report.metrics import (
    GOLD,
    KL_BOUND,
    KL_EXACT,
    LENGTH,
    PROXY,
    REP3,
    TRUNCATED,
    WIN,
    kl_metric,
    kl_of,
    primary,
)
from tests.runs.fake_runs import config, write_baselines, write_run, write_sweep


def difference(mean, low, high, p, by="seeds"):
    return Difference(mean, low, high, p, seeds=3, prompts=8, paired=True, by=by)


def claim(mean, low, high, p, by="seeds"):
    return Claim(GOLD, difference(mean, low, high, p, by), p, family=1)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (claim(0.5, 0.1, 0.9, 0.01), "higher"),
        (claim(-0.5, -0.9, -0.1, 0.01), "lower"),
        (claim(0.5, -0.1, 1.1, 0.01), "not shown"),  # whatever p says, the interval has 0 in it
        (claim(0.5, 0.1, 0.9, 0.06), "not shown"),  # alone it would be shown, in its family it is not
        (claim(0.5, None, None, None), "cannot be said: one seed"),
        (claim(0.5, 0.1, 0.9, 0.01, by="prompts"), "higher on these prompts, one seed"),
        (claim(0.5, -0.1, 0.9, 0.2, by="prompts"), "not shown"),
    ],
)
def test_a_direction_is_named_only_where_interval_and_family_agree(found, verdict):
    assert found.verdict == verdict


def test_a_family_makes_a_difference_harder_to_show():  # Holm: the smallest of two p-values counts twice
    found = (GOLD, difference(0.5, 0.1, 0.9, 0.03))
    alone = judged({"a": found})
    family = judged({"a": found, "b": (GOLD, difference(0, -1, 1, 0.9)), "c": (GOLD, None)})
    assert (alone["a"].word, family["a"].word, family["a"].p, family["a"].family) == ("higher", "not shown", 0.06, 2)
    assert family["c"] is None


def test_reward_kl_and_length_are_families_of_their_own_and_all_else_is_one():
    metrics = {"gold a": GOLD, "gold b": GOLD, "kl": KL_EXACT, "rep3": REP3, "win": WIN, "cut": TRUNCATED}
    table = {name: (metric, difference(0.5, 0.1, 0.9, 0.03)) for name, metric in metrics.items()}
    claims = judged(table)
    assert {name: claim.family for name, claim in claims.items()} == {
        "gold a": 2, "gold b": 2, "kl": 1, "rep3": 3, "win": 3, "cut": 3
    }  # fmt: skip
    assert {name: claim.p for name, claim in claims.items()} == pytest.approx(
        {"gold a": 0.06, "gold b": 0.06, "kl": 0.03, "rep3": 0.09, "win": 0.09, "cut": 0.09}
    )


def arms_of(tmp_path, golds, **settings):
    """Arms named after kl.coef, with gold per seed at the end: {coef: [gold of seed 0, ...]}; 0 at the start."""
    paths = []
    for coef, ends in golds.items():
        for seed, end in enumerate(ends):
            path = write_run(
                tmp_path / f"{coef}-{seed}", config("grpo", seed, algo__kl__coef=coef, **settings), steps=()
            )
            rows = [{"phase": "probe", "step": s, "reward/gold": g, "kl/exact": s / 10, "gen_tokens": 100 * s}
                    for s, g in ((0, 0.0), (10, end / 2), (20, end))]  # fmt: skip
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            paths.append(path)
    return group(load(paths))[0]


def test_the_first_arm_is_what_others_are_compared_with_and_few_arms_are_compared_in_all_pairs(tmp_path):
    few = arms_of(tmp_path / "few", {0.0: [1.0, 1.1], 0.1: [2.0, 2.1], 0.2: [3.0, 3.1]})
    assert [(p.arm.label, p.other.label) for p in pairs.pairs(few, KL_EXACT)] == [
        ("kl.coef=0.1", "kl.coef=0"), ("kl.coef=0.2", "kl.coef=0"), ("kl.coef=0.2", "kl.coef=0.1")
    ]  # fmt: skip
    many = arms_of(tmp_path / "many", {n / 10: [1.0, 1.1] for n in range(5)})
    assert {p.other.label for p in pairs.pairs(many, KL_EXACT)} == {"kl.coef=0"}


def test_a_difference_is_the_first_less_the_second_and_has_its_sign(tmp_path):
    (pair,) = pairs.pairs(arms_of(tmp_path, {0.0: [1.0, 1.1, 1.2], 0.1: [0.5, 0.61, 0.7]}), KL_EXACT)
    found = pair.claim(GOLD)  # -0.5, -0.49, -0.5
    assert (round(found.difference.mean, 4), found.verdict) == (-0.4967, "lower")
    assert [round(end.mean, 3) for end in pair.rows[0].ends] == [0.603, 1.1]
    (row,) = [row for row in csv.DictReader(io.StringIO(pairs.to_csv([pair]))) if row["metric"] == "reward/gold"]
    assert (row["arm"], row["other"], row["verdict"], row["seeds"]) == ("kl.coef=0.1", "kl.coef=0", "lower", "3")


def test_proxies_of_different_rewards_are_never_compared(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"))
    arms, _ = group(load([first, write_run(tmp_path / "b", config("grpo", reward__formula="gold"))]))
    (pair,) = pairs.pairs(arms, KL_EXACT)
    assert pair.claim(PROXY) is None and pair.claim(GOLD) is not None


def test_baselines_are_compared_with_at_a_level_but_not_at_their_end(tmp_path):
    arms, _ = group(load([*write_sweep(tmp_path / "s"), *write_baselines(tmp_path / "b")]))
    kl = kl_metric(arms)
    assert {arm.label for pair in pairs.pairs(arms, kl) for arm in (pair.arm, pair.other)} == {"grpo", "dpo", "sft"}
    assert [kl_of(arm, kl) for arm in arms] == [KL_EXACT, KL_EXACT, KL_EXACT, KL_BOUND, KL_EXACT]
    table = levels.at_matched_kl(arms, kl)
    assert [row.arm.label for row in table.levels[0].rows] == ["grpo", "dpo", "sft", "best_of_n", "temperature"]


def test_values_at_a_level_lie_between_probes_and_are_never_extrapolated(tmp_path):
    arms = arms_of(tmp_path, {0.0: [1.0, 2.0], 0.1: [3.0, 5.0], 0.2: [1.0, 2.0]})
    for run in arms[1].seeds:
        run.probes[20]["kl/exact"] = 1.0  # this arm gets to 1 nat, the first to 2
        run.probes[10]["kl/exact"] = 0.5
    for run in arms[2].seeds:
        run.probes[20]["kl/exact"] = 3.0  # alone beyond 2 nats: nothing to compare it with there
    table = levels.at_matched_kl(arms, KL_EXACT)
    assert [level.at for level in table.levels] == [0.5, 1.0, 2.0]
    half, one, two = table.levels
    # At 0.5 nats the first arm is half-way to its middle probe: 0.25 and 0.5 of gold; the other has 1.5 and 2.5.
    assert [row.cells["reward/gold"].value.mean for row in half.rows] == [0.375, 2.0, 0.375]
    assert one.rows[1].cells["reward/gold"].value.mean == 4.0
    assert two.rows[1].cells["reward/gold"].value is None and (two.rows[1].seeds, two.rows[1].reach) == (0, 1.0)
    assert half.rows[1].cells["reward/gold"].claim.difference.mean == 1.625


def test_tokens_are_matched_among_arms_that_sample(tmp_path):
    arms, _ = group(load(write_sweep(tmp_path, algos=("grpo", "dpo"))))
    assert levels.at_matched_tokens(arms).levels == ()  # dpo samples nothing
    table = levels.at_matched_tokens(arms_of(tmp_path / "t", {0.0: [1.0, 2.0], 0.1: [3.0, 5.0]}))
    assert [level.at for level in table.levels] == [1000.0, 2000.0]


def test_arms_are_judged_by_gold_then_by_the_verifier_then_by_a_reward_they_share(tmp_path):
    def arms(**settings):
        name = str(len(list(tmp_path.iterdir())))
        made = [config("grpo", algo__kl__coef=0.0), config("grpo", algo__kl__coef=0.1, **settings)]
        return group(load([write_run(tmp_path / name / str(n), each) for n, each in enumerate(made)]))[0]

    assert primary(arms()) == GOLD
    without = arms()
    for arm in without:
        for run in arm.seeds:
            for row in run.probes.values():
                del row["reward/gold"]
    assert primary(without) == PROXY
    others = arms(reward__formula="gold")
    for arm in others:
        for run in arm.seeds:
            for row in run.probes.values():
                del row["reward/gold"]
    assert primary(others) is None
    assert LENGTH not in (primary(others),)


def test_an_arm_that_was_cut_off_is_compared_where_both_have_been(tmp_path):
    """Both gain 0.5 of gold by step 10; the finished one 2.0 by step 20, which the other never saw."""
    rows = {}
    for name, steps in (("dpo", (0, 10, 20)), ("grpo", (0, 10))):
        for seed in (0, 1, 2):
            path = write_run(tmp_path / f"{name}-{seed}", config(name, seed), steps=steps)
            rows[name, seed] = path
            lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            for row in lines:
                if row["phase"] == "probe":
                    row["reward/gold"] = {0: 0.0, 10: 0.5 + 0.01 * seed, 20: 2.0}[row["step"]]
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
            (path / "samples.jsonl").unlink()
    (pair,) = pairs.pairs(group(load(rows.values()))[0], KL_EXACT)
    claim = pair.claim(GOLD)
    assert (claim.difference.mean, claim.word) == (0, "not shown")
    assert [end.mean for row in pair.rows if row.claim.metric == GOLD for end in row.ends] == pytest.approx(
        [0.51, 0.51]
    )
