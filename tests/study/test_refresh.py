"""Studies of refreshed rewards, on a world where every number is known: gold has its top inside what answers reach.

An answer is a number x, uniform on 0..1, its only feature is x, and gold is -|x - T|. Of two answers u < v gold prefers
v iff u + v < 2 T. A head on x says "more" or "less", nothing else, so its accuracy on pairs of the best of n by "more"
is P(U + V < 2 T) or one less that, U and V of distribution function x^n.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from scipy.integrate import quad

from align.data.annotator import make_pool, prompts
from align.refusals import ConfigError
from align.study import __main__ as cli
from align.study import engine, heads, refresh, settings, spec, verdict
from align.study.ground import Taught
from align.study.rules import CONFIRMED, INVALID
from reward_models import labels
from reward_models.annotator import Answer, GoldScale
from tests.study.test_heads import BASE, SETTINGS
from tests.study.test_heads import STUDY as OF_HEADS

OWN = ("refresh.depth=0.667", "refresh.rank=1", "refresh.ridge=1.5", "refresh.fresh=64", "refresh.source=policy",
       "refresh.old=mixed", "refresh.flips=0")  # fmt: skip
TOP, N, PAIRS, PROMPTS = 0.53, 8, 2048, 40
LAY = refresh.lay  # the world stands in its place
# Of gold nothing but its units is asked: the world's own stands in info["gold"].
SCALE = GoldScale({}, {}, 0, 1, 0, 0, 1, 1)
STUDY = OF_HEADS | {
    "module": "refresh",
    "base": [*(item for item in BASE if item not in SETTINGS), *OWN, "steps=3", "probe.samples=64",
             f"data.labels.pairs={PAIRS}", "data.labels.sharpness=inf"],
    "tiers": {"cpu": [f"probe.prompts={PROMPTS}"]},
    "arms": {"frozen": ["refresh.source=start"], "refreshed": ["refresh.source=policy"],
             "first": ["refresh.source=none"], "outside": ["refresh.source=start", "refresh.old=dropped"]},
    "controls": {"again": ["refresh.source=again"], "shuffled": ["refresh.flips=0.5"]},
    "mitigations": {"restarted": ["refresh.old=dropped"], "continued": ["refresh.old=prior"]},
    "cure": {"arm": "frozen", "removes": 0.5, "cost": {"metric": "reward/gold", "margin": 9}},
    "primary": {"metric": "rm/policy_accuracy", "rule": "effect", "high": "refreshed", "low": "frozen", "direction": 1,
                "margin": 0.02},
    "secondary": {"drop": {"metric": "rm/policy_drop", "rule": "effect", "high": "frozen", "low": "start",
                           "direction": 1, "margin": 0.03}},
    "gates": {"rm/labels": {"frozen": [PAIRS, PAIRS + 1], "refreshed": [PAIRS, PAIRS + 1]}},
}  # fmt: skip


def planned(tmp_path, *extra, **changes) -> engine.Plan:
    return engine.plan(spec.parse(STUDY | changes), "cpu", None, extra, tmp_path)


def more_is_right(n: int, top: float = TOP) -> float:
    """P(U + V < 2 top), each the best of n of uniform numbers."""

    def given(u: float) -> float:
        return n * u ** (n - 1) * min(1.0, max(0.0, 2 * top - u)) ** n

    return quad(given, 0, 1, points=[max(0.0, 2 * top - 1), min(1.0, 2 * top)])[0]


def test_the_law_of_the_world_by_hand():
    assert more_is_right(1, 0.75) == pytest.approx(7 / 8)  # the square without a corner of 1/2 * 1/2 * 1/2
    assert more_is_right(2, 0.75) == pytest.approx(21 / 32)


# --- the world ---


def numbers(rng: np.random.Generator, asked, samples: int, top: float) -> dict[str, list[Answer]]:
    def one(x: float) -> Answer:
        return Answer(repr(float(x)), 10, True, {"gold": -abs(x - top), "x": x})

    return {prompt.id: [one(x) for x in rng.random(samples)] for prompt in asked}


def world(tasks, top: float = TOP) -> refresh.Ground:
    rng, e = np.random.default_rng(1), tasks[0].experiment
    train, fresh = (numbers(rng, prompts("train"), k, top) for k in (8, refresh._of(tasks[0]).fresh))
    held = numbers(rng, prompts("eval")[: e.probe.prompts], e.probe.samples, top)

    def table(groups, key):
        return np.array([[answer.info[key] for answer in group] for group in groups.values()])

    def features(groups):
        return heads.heads.centred(table(groups, "x")[..., None])

    gold = table(held, "gold")
    judged = heads.Judged(tuple(held), {0.667: features(held)}, gold, np.full(gold.shape, 10.0), np.ones(gold.shape))
    taught = Taught(train, {0.667: features(train).reshape(-1, 1)}, SCALE)
    first = heads.Ground(taught, judged, {"start_fingerprint": "s", "data_fingerprint": "d"})
    return refresh.Ground(first, fresh, {0.667: features(fresh)})


@pytest.fixture(autouse=True)
def in_the_world(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(labels, "gold", lambda answer, *_: answer.info["gold"])
    monkeypatch.setattr(refresh, "lay", world)
    yield


def at_end(arms, name: str, key: str, run: int = 0) -> float:
    return arms[name].seeds[run].value(3, key)


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Every arm, five seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "gold", lambda answer, *_: answer.info["gold"])
        patch.setattr(refresh, "lay", world)
        yield refresh.measure(engine.expand(planned(tmp_path_factory.mktemp("world"))))


# --- the drop and the repair ---


def test_the_first_reward_is_better_than_chance_on_the_start_and_wrong_on_its_own_policy(arms):
    start, policy = more_is_right(1), more_is_right(N)
    assert start == pytest.approx(1 - 0.94**2 / 2) and policy < 0.01
    for name in ("first", "outside", "frozen"):
        assert at_end(arms, name, "rm/policy_accuracy") == pytest.approx(policy, abs=0.01), name
        assert at_end(arms, name, "rm/policy_drop") == pytest.approx(start - policy, abs=0.02), name
        assert at_end(arms, name, "rm/gold_accuracy") == pytest.approx(start, abs=0.04), name


def test_the_drop_grows_with_n_as_the_law_says(arms):
    run = arms["frozen"].seeds[0]
    for step, n in ((1, 2), (2, 4), (3, 8)):
        assert run.value(step, "rm/policy_accuracy") == pytest.approx(more_is_right(n), abs=0.02)
    assert run.value(0, "rm/policy_drop") == 0.0 and run.value(0, "rm/policy_accuracy") is None


def test_labels_on_the_policys_answers_turn_the_reward_round_and_repair_it_there(arms):
    """Mixed: a label on the start's answers pulls by their distance, "more" by 1/3 - .94^3 / 6, "less" by .94^3 / 6, so
    "more" by .056; one on the policy's, nearly all of them beyond the top, "less" by 2 (16/17 - 8/9) = .105."""
    start, policy = more_is_right(1), more_is_right(N)
    for name in ("refreshed", "restarted", "continued"):
        assert at_end(arms, name, "rm/policy_accuracy") == pytest.approx(1 - policy, abs=0.01), name
        assert at_end(arms, name, "rm/policy_drop") == pytest.approx(1 - start - (1 - policy), abs=0.02), name


def test_pairs_of_the_start_again_repair_nothing(arms):
    for seed in range(5):
        assert at_end(arms, "again", "rm/policy_accuracy", seed) == at_end(arms, "frozen", "rm/policy_accuracy", seed)


def test_every_arm_has_as_many_labels_but_the_first_reward(arms):
    bought = {name: {run.value(3, "rm/labels") for run in arm.seeds} for name, arm in arms.items()}
    assert bought.pop("first") == {PAIRS / 2}
    assert set(map(frozenset, bought.values())) == {frozenset({float(PAIRS)})}


def test_the_best_by_the_repaired_reward_is_the_worst_by_this_gold(arms):
    """The best of 8 by "more" is 8/9 on average, by "less" 1/9; gold is not symmetric about a half at .53."""
    table = np.random.default_rng(0).random((200_000, 8))
    for name, x in (("frozen", table.max(1)), ("refreshed", table.min(1))):
        assert at_end(arms, name, "reward/gold") == pytest.approx(-np.abs(x - TOP).mean(), abs=0.02), name


def test_the_verdict_on_the_world(arms, tmp_path):
    study = spec.parse(STUDY)
    found = verdict.examine(study, arms)
    low, high = more_is_right(N), 1 - more_is_right(N)
    assert found.verdict.outcome == CONFIRMED and found.verdict.effect == pytest.approx(high - low, abs=0.01)
    assert found.secondary[0].verdict.outcome == CONFIRMED
    assert found.secondary[0].verdict.effect == pytest.approx(more_is_right(1) - low, abs=0.02)
    assert {one.title: one.verdict.outcome for one in found.controls}["again"] != CONFIRMED
    assert all(gate.passed for gate in found.gates)


def test_unequal_labels_make_it_invalid(arms):
    gates = {"rm/labels": {"refreshed": [PAIRS, PAIRS + 1], "first": [PAIRS, PAIRS + 1]}}
    found = verdict.examine(spec.parse(STUDY | {"gates": gates}), arms)
    assert found.verdict.outcome == INVALID and "gate rm/labels of arm first: 1024" in found.verdict.reason


# --- what would show an effect where there is none ---


def test_coin_flips_on_the_policys_answers_leave_the_old_labels_to_decide(arms):
    for seed in range(5):
        found = [at_end(arms, name, "rm/policy_accuracy", seed) for name in ("shuffled", "frozen")]
        assert found[0] == found[1] < 0.01


def test_with_the_top_further_up_old_labels_outweigh_the_new_unless_they_are_dropped(tmp_path):
    """At .75 one of the start's pulls "more" by 1/3 - .5^3 / 3 = .29, one of the policy's "less" by at most .105."""
    tasks = engine.expand(planned(tmp_path, seeds=[0]))
    ground, wrong = world(tasks, top=0.75), more_is_right(N, 0.75)
    found = {task.arm: refresh.judge(ground, task).value(3, "rm/policy_accuracy") for task in tasks}
    assert wrong < 0.1 and found["refreshed"] == found["frozen"] == pytest.approx(wrong, abs=0.01)
    assert found["restarted"] == found["continued"] == pytest.approx(1 - wrong, abs=0.01)


def test_what_the_first_half_is_to_the_arms_head():
    early, none = np.array([0.7, -0.2]), np.zeros((0, 2))
    old = np.random.default_rng(0).normal(size=(9, 2))

    def made(how):
        own = settings.read("refresh", engine.merged(OWN, [f"refresh.old={how}"]))
        return refresh.final(own, old, none, early).tolist()

    assert made("dropped") == [0, 0] and made("prior") == early.tolist()
    assert made("mixed") == refresh.fits.bradley_terry(old, 1.5).tolist()


def test_the_halves_are_equal_and_their_labels_have_luck_of_their_own(tmp_path, monkeypatch):
    asked = []

    def spied(pool, scale, wanted):
        asked.append(wanted)
        return labels.label_pairs(pool, scale, wanted)

    monkeypatch.setattr("align.study.ground.label_pairs", spied)
    monkeypatch.setattr(refresh, "label_pairs", spied)
    tasks = engine.expand(planned(tmp_path, seeds=[3], base=[*STUDY["base"], "data.labels.flips=0.1"]))
    refresh.judge(world(tasks), next(task for task in tasks if task.arm == "shuffled"))
    assert [(one.pairs, one.flips) for one in asked] == [(PAIRS / 2, 0.1), (PAIRS / 2, 0.5)]
    assert asked[0].seed == 3 != asked[1].seed


def test_where_gold_only_rises_there_is_no_drop_and_nothing_to_repair(tmp_path):
    tasks = engine.expand(planned(tmp_path, seeds=[0]))
    ground = world(tasks, top=2.0)
    for task in tasks:
        if task.arm != "shuffled":
            run = refresh.judge(ground, task)
            assert (run.value(3, "rm/policy_accuracy"), run.value(3, "rm/policy_drop")) == (1.0, 0.0), task.arm


def test_the_further_answers_are_not_those_of_the_first_half(tmp_path, monkeypatch):
    """Answers of one prompt and number are the same in every pool of a model, so the first eight are left out."""
    tasks = engine.expand(planned(tmp_path, seeds=[0]))
    first = world(tasks).first

    def answered(cfg, experiment, policy, asked):
        def said(prompts, samples):
            return [(f"{prompt.id} {k}", 9, True) for prompt in prompts for k in range(samples)]

        return make_pool(cfg, said, "model", asked)

    monkeypatch.setattr(refresh, "start", lambda _: (None, None))
    monkeypatch.setattr(heads, "stand", lambda *_: first)
    monkeypatch.setattr(refresh, "answered", answered)
    monkeypatch.setattr(
        refresh, "obtain_features", lambda _, rows, *__: torch.tensor([[[float(row.sample)]] for row in rows])
    )
    ground = LAY(tasks)
    for name, group in ground.fresh.items():
        assert [answer.text for answer in group] == [f"{name} {k}" for k in range(8, 72)]
    assert ground.features[0.667].shape == (294, 64, 1) and ground.features[0.667][0, :, 0].tolist() == [
        k - 39.5 for k in range(8, 72)
    ]
    assert ground.first.meta["data_fingerprint"] != "d"


def test_arms_with_other_further_answers_are_refused(tmp_path):
    arms = STUDY["arms"] | {"first": ["refresh.source=none", "refresh.fresh=32"]}
    tasks = engine.expand(planned(tmp_path, arms=arms))
    with pytest.raises(ConfigError, match=r"refresh.fresh=\[32, 64\]: must be the same in all arms"):
        LAY(tasks)


# --- too few, and the command ---


def test_too_few_pairs_are_refused(tmp_path):
    tasks = engine.expand(planned(tmp_path, seeds=[0]))
    ground = world(tasks)
    few = {
        name: [replace(answer, finished=k < 8) for k, answer in enumerate(group)]
        for name, group in ground.fresh.items()
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match="refresh.fresh=64: .* pairs of groups of 8 .* half of data.labels.pairs is 1024"
    ):
        refresh.judge(refresh.Ground(ground.first, few, ground.features), tasks[0])


def test_the_command_writes_page_and_verdict(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY, allow_unicode=True), encoding="utf-8")
    assert cli.main([f"study={tmp_path}/mine.yaml", f"out={tmp_path}/out", f"runs_root={tmp_path}/runs"]) == 0
    assert "CONFIRMED" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out/made_up/verdict.json").read_text("utf-8"))
    assert kept["arms"]["frozen"]["metrics"]["rm/labels"]["end"] == PAIRS
    page = (tmp_path / "out/made_up/index.html").read_text("utf-8")
    assert "the best of 2^s by the first reward" in page and "before the first update" not in page
