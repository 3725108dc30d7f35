from __future__ import annotations

import pytest

from align.report.arms import group, load
from align.report.gallery import figures
from align.report.metrics import GOLD, KL_K1, change, prompt_means
from align.report.stats import at_step, t_interval
from tests.runs.fake_runs import config, write_run


def test_interval_of_one_two_three_is_two_plus_minus_2_484():  # t(0.975, 2) = 4.3027, s = 1, 4.3027 / sqrt(3)
    found = t_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(2.4841, abs=1e-4)


def test_interval_of_two_seeds_is_as_wide_as_two_seeds_deserve():  # t(0.975, 1) = 12.706, s / sqrt(2) = 0.5
    assert t_interval([1.0, 2.0]).half_width == pytest.approx(12.706 * 0.5, abs=1e-3)


def test_one_seed_has_no_interval():
    found = t_interval([5.0])
    assert (found.mean, found.low, found.high, found.half_width) == (5.0, None, None, None)


def test_the_prompt_is_the_unit_not_the_completion():
    rows = {("a", 0): {"gold": 1.0}, ("a", 1): {"gold": 3.0}, ("b", 0): {"gold": 5.0}, ("b", 1): {"gold": None}}
    assert prompt_means(rows, "gold") == {"a": 2.0, "b": 5.0}


def arm_of(tmp_path, golds_per_seed):
    """An arm whose seeds have the given reward/gold at step 0 and at step 20."""
    paths = []
    for seed, golds in enumerate(golds_per_seed):
        path = write_run(tmp_path / str(seed), config("grpo", seed), steps=())
        rows = [f'{{"phase": "probe", "step": {step}, "reward/gold": {gold}}}\n' for step, gold in golds.items()]
        (path / "metrics.jsonl").write_text("".join(rows))
        paths.append(path)
    (arm,), _ = group(load(paths))
    return arm


def test_change_over_seeds_pairs_each_seed_with_its_own_start(tmp_path):
    # changes 1, 2, 3; the starts lie far apart and must not widen the interval
    arm = arm_of(tmp_path, [{0: 0.0, 20: 1.0}, {0: 10.0, 20: 12.0}, {0: -5.0, 20: -2.0}])
    found = change(arm, GOLD)
    assert (round(found.mean, 9), found.seeds, found.prompts) == (2.0, 3, 0)
    assert found.high - found.mean == pytest.approx(2.4841, abs=1e-4)


def test_a_seed_that_stopped_early_does_not_enter_the_change(tmp_path):
    arm = arm_of(tmp_path, [{0: 0.0, 20: 1.0}, {0: 0.0, 20: 2.0}, {0: 0.0, 10: 100.0}])
    assert change(arm, GOLD).mean == 1.5


def test_start_end_and_curve_are_of_the_same_seeds(tmp_path):  # else the mean would jump where a seed stops
    arm = arm_of(tmp_path, [{0: 1.0, 10: 2.0, 20: 3.0}, {0: 100.0, 10: 100.0}])
    assert [at_step(arm, step, "reward/gold").mean for step in (0, 20)] == [1.0, 3.0]
    (curve,) = next(figure for figure in figures([arm], KL_K1) if figure.name == "gold-step").curves
    assert [point.y.mean for point in curve.points] == [1.0, 2.0, 3.0]
    assert curve.seeds[1] == ((0.0, 100.0), (10.0, 100.0))  # the seed that stopped keeps its thin line


def test_change_of_one_seed_is_paired_over_prompts(tmp_path):
    arm = arm_of(tmp_path, [{0: 1.0, 20: 3.0}])
    lines = [(0, "a", 0.0), (0, "b", 2.0), (0, "c", 7.0), (20, "a", 1.0), (20, "b", 5.0)]  # c has no end
    text = "".join(f'{{"step": {s}, "prompt_id": "{p}", "sample": 0, "gold": {g}}}\n' for s, p, g in lines)
    (tmp_path / "0" / "samples.jsonl").write_text(text)
    (arm,), _ = group(load([tmp_path / "0"]))
    found = change(arm, GOLD)
    assert (found.mean, found.prompts, found.by) == (2.0, 2, "prompts")  # changes 1 and 3
    assert found.high - found.mean == pytest.approx(12.706, abs=1e-3)


def test_without_samples_one_seed_gives_a_bare_difference(tmp_path):
    found = change(arm_of(tmp_path, [{0: 1.0, 20: 3.0}]), GOLD)
    assert (found.mean, found.low, found.high) == (2.0, None, None)


@pytest.mark.parametrize("golds", [{0: 1.0}, {20: 3.0}, {0: "null", 20: 3.0}, {}])
def test_without_both_ends_there_is_no_change(tmp_path, golds):
    assert change(arm_of(tmp_path, [golds]), GOLD) is None
