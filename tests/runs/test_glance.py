"""Five questions: the answers say no more than the numbers do."""

from __future__ import annotations

import json

from align.alarms import ALARM, Alarm
from align.report import diagnostics
from align.report.arms import group, load
from align.report.curves import CROWDED, curves, of
from align.report.figures import BASELINE_GLYPHS, GLYPHS, look
from align.report.findings import examine
from align.report.gallery import figures
from align.report.glance import glance
from align.report.levels import paths
from align.report.metrics import GOLD, KL_EXACT
from tests.runs.fake_runs import config, write_baselines, write_run, write_sweep


def answers_of(*paths):
    return {answer.question: " ".join(answer.lines) for answer in glance(examine(*group(load(paths))))}


def arm(root, coef, ends, **more):
    """Seeds of one arm; `ends` are (gold, length, kl) at step 20, gold 0, length 30 and KL 0 at step 0."""
    paths = []
    for seed, (gold, length, kl) in enumerate(ends):
        path = write_run(root / f"{coef}-{seed}", config("grpo", seed, algo__kl__coef=coef, **more), steps=())
        rows = [{"phase": "probe", "step": 0, "reward/gold": 0.0, "length/mean": 30.0, "kl/exact": 0.0},
                {"phase": "probe", "step": 20, "reward/gold": gold, "length/mean": length, "kl/exact": kl}]  # fmt: skip
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)
    return paths


def test_the_arm_that_drifted_furthest_for_the_same_gold_is_named_when_it_is_sure(tmp_path):
    near = arm(tmp_path, 0.1, [(1.0, 30, 1.0), (1.0, 31, 1.01), (1.0, 32, 0.99)])
    far = arm(tmp_path, 0.0, [(1.0, 30, 3.0), (1.0, 31, 3.02), (1.0, 32, 2.98)])
    said = answers_of(*near, *far)["Which arm drifted furthest for the same gold reward?"]
    assert "kl.coef=0 3.00 [2.95, 3.05] and kl.coef=0.1 1.00 [0.98, 1.02]" in said
    assert "kl.coef=0 drifted furthest (+2.00" in said


def test_no_arm_is_named_where_the_interval_does_not_say_so(tmp_path):
    near = arm(tmp_path, 0.1, [(1.0, 30, 1.0), (1.0, 31, 2.0), (1.0, 32, 3.0)])
    far = arm(tmp_path, 0.0, [(1.0, 29, 3.5), (1.0, 31, 2.0), (1.0, 33, 1.5)])
    said = answers_of(*near, *far)
    assert "drifted furthest is not shown: kl.coef=0 minus kl.coef=0.1 is +0.33" in " ".join(said.values())
    assert "kl.coef=0.1: not shown: +1.0 [−1.5, +3.5] includes 0 (3 seeds)." in said["Did length grow?"]
    assert "gold reward: not shown" in said["Is that difference real?"]
    assert not any(word in " ".join(said.values()) for word in ("higher", "lower", "longer", "shorter"))


def test_growth_of_length_is_said_with_its_interval(tmp_path):  # changes 10, 11, 12: 11 ± 2.48
    said = answers_of(*arm(tmp_path, 0.1, [(1.0, 40, 1.0), (1.1, 41, 1.0), (1.2, 42, 1.0)]))
    assert said["Did length grow?"] == "longer by 11.0 [8.5, 13.5] tokens (3 seeds)."


def test_one_seed_without_samples_says_nothing_of_direction(tmp_path):
    said = answers_of(*arm(tmp_path, 0.1, [(1.0, 40, 1.0)]), *arm(tmp_path, 0.2, [(2.0, 30, 2.0)]))
    assert "kl.coef=0.1: cannot be said: one seed (+10.0)." in said["Did length grow?"]
    assert "really drifted furthest cannot be said from one seed" in " ".join(said.values())
    assert "cannot be said: one seed (+1.000)" in said["Is that difference real?"]


def test_what_one_seed_shows_is_said_of_its_prompts_only(tmp_path):
    paths = [write_run(tmp_path / algo, config(algo)) for algo in ("grpo", "dpo")]
    said = answers_of(*paths)
    assert "8 prompts of one seed; another seed may differ" in said["Did length grow?"]
    assert "hold after Holm's correction, on these prompts of one seed" in said["Is that difference real?"]


def test_events_that_are_alarms_are_not_counted_twice(tmp_path):
    noted = [(ALARM, 10, "alarm repetition, step 10: said while it ran"), ("nonfinite", 5, "one reward was NaN")]
    arms, left_out = group(load([write_run(tmp_path / "a", config(), events=noted)]))
    assert [(fired.kind, fired.alarm) for fired in examine(arms, left_out).fired] == [("nonfinite", False)]


def test_what_changed_names_the_science_before_the_circumstances(tmp_path):
    first = write_run(tmp_path / "a", config(algo__kl__coef=0.0, device="cpu", sampling__rows=8))
    said = answers_of(first, write_run(tmp_path / "b", config(algo__kl__coef=0.1, device="cuda")))
    assert said["What changed between these two arms?"] == (
        "algo.kl.coef: 0 → 0.1. sampling.rows: 8 → 64. device: cpu → cuda."
    )


def test_what_changed_names_the_keys_that_not_all_arms_have(tmp_path):
    first = write_run(tmp_path / "a", config(sampling__vllm=None))
    changed = "What changed between these two arms?"
    servers = {"sampling__vllm": {"model": "m", "url": "u"}}
    assert answers_of(first, write_run(tmp_path / "b", config(**servers)))[changed] == (
        "Not all of them have sampling.vllm, sampling.vllm.model and sampling.vllm.url. "
        "Every key that all of them have is the same."
    )
    assert answers_of(first, write_run(tmp_path / "c", config("dpo", **servers)))[changed].startswith("The algorithm: ")


def test_where_it_went_wrong_is_the_earliest_alarm_of_each_arm(tmp_path, monkeypatch):
    fired = {0: [Alarm(20, "late", "later")], 1: [Alarm(10, "hack", "gold falls while proxy rises")], 2: []}
    monkeypatch.setattr(diagnostics, "alarms", lambda rows: fired[int(rows[0]["seed"])])
    paths = [write_run(tmp_path / f"{n}", config("grpo", n), values={"seed": n}) for n in range(3)]
    arms, left_out = group(load(paths))
    found = examine(arms, left_out)
    assert [(f.kind, f.step, f.seeds, f.where) for f in found.fired] == [
        ("hack", 10, 1, "1 of 3 seeds"), ("late", 20, 1, "1 of 3 seeds")
    ]  # fmt: skip
    said = {answer.question: " ".join(answer.lines) for answer in glance(found)}
    assert said["Where did it start to go wrong?"] == "step 10, gold falls while proxy rises (1 of 3 seeds)."
    drawn = figures(arms, found.kl, diagnostics.marks(found.fired))
    assert {(mark.step, mark.style) for figure in drawn if figure.by_step for mark in figure.marks} == {
        (10, 0),
        (20, 0),
    }


def test_silence_is_no_proof_and_what_runs_noted_and_failures_are_told(tmp_path):
    run = write_run(tmp_path / "a", config(), state="failed", events=[("nonfinite", 3, "a reward was NaN")])
    said = answers_of(run)["Where did it start to go wrong?"]
    assert said == (
        "No alarm fired. That is no proof that all is well. The runs themselves noted nonfinite, first at step 3 in "
        "grpo. Failed: grpo seed 0."
    )


def test_among_many_arms_only_extremes_are_told(tmp_path):
    paths = [write_run(tmp_path / str(n), config(algo__kl__coef=n / 10)) for n in range(CROWDED + 4)]
    answers = glance(examine(*group(load(paths))))
    assert len(answers) == 5 and max(len(answer.lines) for answer in answers) <= 4
    assert sum(len(line) for answer in answers for line in answer.lines) < 2000


def test_baselines_are_curves_over_kl_with_n_and_temperature_written_beside_them(tmp_path):
    arms, _ = group(load([*write_baselines(tmp_path), *write_sweep(tmp_path, algos=("grpo",))]))
    found = examine(arms, [])
    drawn = {figure.name: figure for figure in figures(arms, found.kl)}
    n, heat, grpo = drawn["frontier-gold"].curves
    assert [point.tag for point in n.points] == ["n=1", "n=2", "n=4", "n=8"]
    assert [point.tag for point in heat.points] == ["T=1", "T=0.7", "T=0.5", "T=0.3"]
    assert [round(point.x.mean, 3) for point in n.points] == [0.0, 0.193, 0.636, 1.204]  # log n - (n - 1) / n
    assert (n.style, heat.style, grpo.style) == (-1, -2, 0) and {point.tag for point in grpo.points} == {""}
    assert [curve.label for curve in drawn["gold-step"].curves] == ["grpo"]
    said = {answer.question: " ".join(answer.lines) for answer in glance(found)}
    assert "best_of_n" not in said["Did length grow?"]


def test_a_grid_of_temperatures_and_top_ps_goes_from_the_start_to_the_sharpest(tmp_path):
    (arm,), _ = group(load([write_baselines(tmp_path)[-1]]))
    (run,) = arm.seeds
    for step, (temperature, top_p) in enumerate([(1.0, 1.0), (0.7, 0.9), (0.7, 1.0), (1.0, 0.9)]):
        run.probes[step].update({"sampling/temperature": temperature, "sampling/top_p": top_p})
    assert [arm.setting(step) for step in arm.steps] == ["T=1", "T=0.7, p=0.9", "T=0.7", "T=1, p=0.9"]
    (curve,) = curves([arm], of(KL_EXACT), of(GOLD))
    assert [point.step for point in curve.points] == [0, 3, 2, 1]
    (path,) = paths(arm, KL_EXACT, GOLD).values()
    assert [x for x, _ in path] == [run.value(step, "kl/exact") for step in (0, 3, 2, 1)]


def test_arms_differ_in_more_than_colour():
    looks = [look(style) for style in range(49)]
    assert len({(each.marker, each.colour, str(each.dashes)) for each in looks}) == 49
    assert len({each.marker for each in looks[:7]}) == 7  # told apart without seeing any colour
    assert not set(BASELINE_GLYPHS) & set(GLYPHS) and not {each.marker for each in looks} & set("X><d")
