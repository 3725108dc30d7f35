"""What a refreshed reward is made of: groups of answers, settings, and the declared study. Nothing is measured."""

from __future__ import annotations

import numpy as np
import pytest

from align.data.annotator import label_settings
from align.refusals import ConfigError
from align.study import engine, refresh, settings, spec
from tests.study.test_refresh import OWN, planned

# --- groups ---


def test_each_groups_best_its_first_or_its_second_and_no_answer_twice():
    rewards = np.random.default_rng(0).random((5, 13))
    taken = {source: refresh.picks(rewards, 4, source, 7) for source in ("start", "again", "policy")}
    assert {found.shape for found in taken.values()} == {(5, 3)}
    for x in range(5):
        assert len({*taken["start"][x], *taken["again"][x]}) == 6
        assert len({*taken["policy"][x]}) == 3
    value = {source: np.take_along_axis(rewards, found, 1) for source, found in taken.items()}
    assert (value["policy"] >= np.maximum(value["start"], value["again"])).all()
    assert (refresh.picks(rewards, 4, "start", 7) == taken["start"]).all()
    assert (refresh.picks(-rewards, 4, "start", 7) == taken["start"]).all()
    assert (refresh.picks(rewards, 4, "start", 8) != taken["start"]).any()


def test_the_best_of_groups_of_four_of_uniform_rewards_is_four_fifths():
    rewards = np.random.default_rng(0).random((2000, 8))
    best = np.take_along_axis(rewards, refresh.picks(rewards, 4, "policy", 0), 1)
    assert best.mean() == pytest.approx(0.8, abs=0.01)
    whole = np.take_along_axis(rewards, refresh.picks(rewards, 8, "policy", 0), 1)
    assert (whole[:, 0] == rewards.max(1)).all()


# --- settings ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("refresh.source=best", "refresh.source=best: must be one of none, start, again, policy"),
        ("refresh.old=kept", "refresh.old=kept: must be one of mixed, prior, dropped"),
        ("refresh.flips=0.6", "refresh.flips=0.6: must be >= 0 and <= 0.5"),
        ("refresh.fresh=0", "refresh.fresh=0: must be >= 1"),
        ("refresh.depth=2", "refresh.depth=2: must be > 0 and <= 1"),
        ("refresh.rank=0", "refresh.rank=0: must be >= 1"),
        ("refresh.ridge=-1", "refresh.ridge=-1: must be >= 0"),
        ("algo=rloo algo.optimizer.warmup_steps=0", "algo=rloo: module=refresh judges by algo=best_of_n"),
        ("refresh.source=none refresh.old=dropped", "refresh.old=dropped: without a second half there is nothing"),
        ("data.labels.pairs=201", "data.labels.pairs=201: comes in two halves"),
        ("refresh.fresh=15", "refresh.fresh=15: a pair takes two groups of 2.3: must be 16 or more"),
        ("data.labels.annotators=5", "data.labels.annotators=5: a panel is drawn by the seed"),
    ],
)
def test_a_refresh_that_cannot_be_is_refused(tmp_path, change, said):
    arms = {"frozen": ["refresh.source=start", *change.split()], "refreshed": [], "first": [], "outside": []}
    with pytest.raises(ConfigError, match=said):
        engine.expand(planned(tmp_path, arms=arms))


def test_a_refresh_has_one_head_and_settings_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="refresh.members=.*there is no such key"):
        settings.read("refresh", (*OWN, "refresh.members=1"))
    with pytest.raises(ConfigError, match="refresh.flips=: is missing"):
        settings.read("refresh", OWN[:-1])
    with pytest.raises(ConfigError, match="heads"):
        engine.expand(planned(tmp_path, "heads.rank=1"))
    assert settings.read("refresh", OWN).fresh == 64


def test_the_declared_study_is_made_of_tasks_with_equal_labels(tmp_path):
    study = spec.load(spec.find("rm_refresh"))
    for tier in study.tiers:
        tasks = engine.expand(engine.plan(study, tier, (0,), (), tmp_path))
        assert len(tasks) == 8 and {label_settings(t.experiment.data).pairs for t in tasks} == {768}
        groups = {t.own.fresh // 2**t.experiment.steps for t in tasks}
        assert groups == {4}  # of 294 prompts two pairs each: 588, of which 384 are asked for
