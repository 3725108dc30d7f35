"""Verdicts of made-up runs whose differences are known: 20 tokens longer, margin a tenth of 40, and so on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from align.refusals import ConfigError
from align.report.arms import load
from align.study import __main__ as cli
from align.study import page, record
from align.study.engine import Plan
from align.study.judged import KNOWN, unit
from align.study.rules import CONFIRMED, EQUIVALENT, INCONCLUSIVE, INVALID, REVERSED
from align.study.spec import Contrast
from align.study.verdict import Found, assemble, examine, in_place, screened
from tests.study.fakes import ENDS, TRAINED, arms_of, study_of


def found_of(root, ends=ENDS, **changes):
    study = study_of(**changes)
    return examine(study, arms_of(root, study, ends))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_of(tmp_path_factory.mktemp("runs"))


def test_twenty_tokens_more_are_confirmed_against_a_tenth_of_the_start(found):
    assert found.verdict.outcome == CONFIRMED and not found.verdict.provisional
    assert found.verdict.effect == pytest.approx(19.95) and found.verdict.margin == pytest.approx(4.0)
    assert (found.verdict.seeds, found.verdict.agree) == (5, 5)
    assert found.primary.by_seed == pytest.approx({"0": 19.75, "1": 20.0, "2": 20.25, "3": 19.75, "4": 20.0})


def test_the_control_shows_no_effect(found):
    (control,) = found.controls
    assert control.verdict.outcome == EQUIVALENT and (control.high, control.low) == ("placebo", "plain")


def test_a_mitigation_works_when_it_removes_enough_and_costs_little(found):
    cured, costly = found.cured
    assert cured.works is True and cured.removed == pytest.approx(17.9 / 19.95)
    assert cured.removal.verdict.outcome == CONFIRMED and cured.cost.verdict.outcome == EQUIVALENT
    assert costly.works is False and costly.removed == pytest.approx(18.9 / 19.95)
    assert costly.cost.verdict.outcome == REVERSED  # gold falls by 2, allowed is 0.5


def test_a_cure_may_name_who_is_well(tmp_path):
    """Against the arm `costly`, at 41.05 tokens where `treated` is at 59.95, `cured` at 42.05 removes 17.9 of 18.9."""
    cure = TRAINED["cure"] | {"well": "costly"}
    arms = TRAINED["arms"] | {"costly": ["algo.beta=4"]}
    found = found_of(tmp_path, cure=cure, arms=arms, mitigations={"cured": ["algo.beta=3"]})
    (one,) = found.cured
    assert one.removed == pytest.approx(17.9 / 18.9)
    with pytest.raises(ConfigError, match="cure.well"):
        study_of(cure=TRAINED["cure"] | {"well": "treated"})


def test_without_an_effect_there_is_nothing_to_cure(tmp_path):
    same = found_of(tmp_path, ENDS | {"treated": ENDS["plain"]})
    assert same.verdict.outcome != CONFIRMED and [one.works for one in same.cured] == [None, None]


def test_a_failed_gate_makes_it_invalid_and_names_arm_and_value(tmp_path):
    found = found_of(tmp_path, ENDS | {"treated": (60.0, 1.0, 0.25)})
    assert found.verdict.outcome == INVALID
    assert found.verdict.reason == "gate kl/exact of arm treated: 0.25, must be within [0.5, 10]"
    assert found.verdict.effect == pytest.approx(19.95)  # still shown


def test_gates_are_of_the_arms_and_not_of_what_stands_beside(tmp_path):
    assert found_of(tmp_path, ENDS | {"cured": (42.0, 1.1, 0.1)}).verdict.outcome == CONFIRMED


def test_a_gate_that_nothing_measured_is_a_failed_gate(tmp_path):
    found = found_of(tmp_path, gates={"text/rep9": [0, 1]})
    assert found.verdict.outcome == INVALID and "gate text/rep9 of arm plain: not measured" in found.verdict.reason


def lose(root, study, run, key):
    """A run's last probe without a number that the others have."""
    file = root / run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    last = max(i for i, row in enumerate(rows) if key in row)
    rows[last][key] = None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return assemble({arm: load([root / f"{arm}-{s}" for s in study.seeds["cpu"]]) for arm in study.roles})


def test_a_seed_whose_metric_is_not_finite_makes_it_invalid_and_is_named(tmp_path):
    study = study_of()
    arms_of(tmp_path, study)
    found = examine(study, lose(tmp_path, study, "treated-3", "length/mean"))
    assert found.verdict.outcome == INVALID
    assert found.verdict.reason == "length/mean of arm treated has no finite value in seed 3"


def test_a_gate_needs_every_seed(tmp_path):
    study = study_of()
    arms_of(tmp_path, study)
    found = examine(study, lose(tmp_path, study, "plain-1", "kl/exact"))
    assert found.verdict.outcome == INVALID and "gate kl/exact of arm plain: not measured" in found.verdict.reason


GAIN = {"metric": "reward/gold", "rule": "effect", "high": "treated", "low": "start", "direction": 1, "margin": 0.5}


def test_of_an_invalid_study_nothing_is_decided(tmp_path):
    found = found_of(tmp_path, ENDS | {"treated": (60.0, 1.0, 0.25)}, secondary={"gain": GAIN})
    assert found.secondary[0].verdict.outcome == INCONCLUSIVE
    assert found.secondary[0].verdict.reason.startswith("the study is INVALID: CONFIRMED was seen with 5 seeds")
    assert [one.works for one in found.cured] == [None, None]


def test_against_a_claim_there_is_nothing_to_cure(tmp_path):
    found = found_of(tmp_path, ENDS | {"treated": (30.0, 1.0, 2.0)})
    assert found.verdict.outcome == REVERSED and [one.works for one in found.cured] == [None, None]


def test_a_mitigation_is_judged_by_the_effect_of_its_own_seeds(tmp_path):
    """Seeds 3 and 4 are treated less, and the mitigations have only the first three."""
    study = study_of(beside={"cpu": 3})
    arms = {name: [run for run in arm.seeds if arm.label not in ("cured", "costly") or run.seed < 3]
            for name, arm in arms_of(tmp_path / "a", study).items()}  # fmt: skip
    weak = arms_of(tmp_path / "b", study, ENDS | {"treated": (50.0, 1.0, 2.0)})["treated"].seeds
    arms["treated"] = [*arms["treated"][:3], *weak[3:]]
    found = examine(study, assemble(arms))
    assert found.primary.verdict.effect == pytest.approx((19.75 + 20 + 20.25 + 9.75 + 10) / 5)
    assert found.cured[0].removed == pytest.approx(18 / 20)  # 60 - 42 of 60 - 40, not of the mean of all five


def test_the_control_of_a_peak_is_judged_as_a_peak(found):
    primary = Contrast("reward/gold", "peak", 0.1, "absolute", None, "treated", "start", {}, None, "kl/exact")
    assert in_place(primary, "placebo") == replace(primary, high="placebo")
    levels = {"plain": 0.0, "cured": 1.0, "treated": 2.0}
    over = Contrast("reward/gold", "peak", 0.1, "absolute", None, None, None, levels)
    assert in_place(over, "placebo").levels == {"plain": 0.0, "cured": 1.0, "placebo": 2.0}


def test_a_pool_whose_gate_failed_makes_it_invalid_and_other_notes_of_the_data_do_not(tmp_path):
    study = study_of()
    arms_of(tmp_path, study)
    for name, note in (("plain-0", "identical answers: dropped 2"), ("treated-1", "gate truncation FAILED: 0.2")):
        file = tmp_path / name / "meta.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data_notes": [note]}))
    again = {arm: load([tmp_path / f"{arm}-{s}" for s in study.seeds["cpu"]]) for arm in study.roles}
    found = examine(study, assemble(again))
    assert (found.verdict.outcome, found.verdict.reason) == (INVALID, "gate truncation FAILED: 0.2")


def test_a_negative_control_that_shows_the_effect_makes_it_invalid(tmp_path):
    found = found_of(tmp_path, ENDS | {"placebo": (58.0, 0.0, 2.0)})
    assert found.verdict.outcome == INVALID
    assert found.verdict.reason == "the negative control placebo shows the effect: 17.95 (must not be CONFIRMED)"


def test_the_other_direction_is_reversed_and_three_seeds_are_provisional(tmp_path):
    found = found_of(tmp_path, ENDS | {"treated": (30.0, 1.0, 2.0)}, seeds=[0, 1, 2])
    assert (found.verdict.outcome, found.verdict.provisional) == (REVERSED, True)
    assert found.verdict.effect == pytest.approx(-10.0)


# --- tiers that only screen ---

SCREEN = {"tiers": {"cpu": ["steps=4"], "gpu": ["steps=8"]}, "screen": ["cpu"]}


def screened_of(root, seeds, ends=ENDS, tier="cpu", **changes) -> tuple[Plan, Found]:
    study = study_of(**SCREEN | changes, seeds=list(seeds))
    chosen = Plan(study, tier, tuple(seeds), (), root)
    return chosen, screened(chosen, examine(study, arms_of(root, study, ends)))


@pytest.mark.parametrize(("tokens", "seen"), [(60.0, CONFIRMED), (30.0, REVERSED), (40.5, EQUIVALENT)])
def test_what_a_screen_sees_with_three_seeds_is_told_and_is_no_verdict(tmp_path, tokens, seen):
    chosen, found = screened_of(tmp_path, (0, 1, 2), ENDS | {"treated": (tokens, 1.0, 2.0)})
    assert found.verdict.outcome == INCONCLUSIVE and found.screen
    assert found.verdict.reason.startswith(f"screen: {seen} was seen with 3 seeds (")
    assert found.verdict.reason.endswith("what decides the claim is tier gpu")
    assert found.primary.verdict.outcome == INCONCLUSIVE
    assert found.primary.verdict.reason.startswith(f"screen: {seen} was seen with 3 seeds (")  # still there to be read
    assert [one.works for one in found.cured] == [None, None]
    kept = json.loads(record.of_arms(chosen, found, "code"))
    assert (kept["outcome"], kept["screen"], kept["primary"]["outcome"]) == (INCONCLUSIVE, True, INCONCLUSIVE)


def test_with_the_full_protocol_a_screen_decides(tmp_path):
    chosen, found = screened_of(tmp_path, range(5))
    assert found.verdict.outcome == CONFIRMED and not found.screen
    assert json.loads(record.of_arms(chosen, found, "code"))["screen"] is False


@pytest.mark.parametrize("changes", [{"tier": "gpu"}, {"screen": ["gpu"]}])
def test_a_tier_that_is_no_screen_decides_with_three_seeds_too(tmp_path, changes):
    _, found = screened_of(tmp_path, (0, 1, 2), **changes)
    assert found.verdict.outcome == CONFIRMED and found.verdict.provisional and not found.screen


def test_a_failed_gate_is_invalid_in_a_screen_too(tmp_path):
    _, found = screened_of(tmp_path, (0, 1, 2), ENDS | {"treated": (60.0, 1.0, 0.25)})
    assert found.verdict.outcome == INVALID and found.verdict.reason.startswith("gate kl/exact of arm treated")


def test_a_screen_is_called_so_on_the_page_and_the_terminal(tmp_path, capsys):
    chosen, found = screened_of(tmp_path, (0, 1, 2))
    html = page.render_arms(chosen, found, [])
    assert "<title>made_up: INCONCLUSIVE (screen)</title>" in html and "? INCONCLUSIVE (screen)<" in html
    assert "Screen: CONFIRMED was seen with 3 seeds" in html
    cli._say(found.verdict, "", tmp_path, found.screen)
    assert capsys.readouterr().out.splitlines()[0] == "INCONCLUSIVE (screen)"
    failed = screened_of(tmp_path / "failed", (0, 1, 2), ENDS | {"treated": (60.0, 1.0, 0.25)})[1]
    assert page.shown(failed.verdict, failed.screen) == INVALID


def test_the_start_is_step_zero_of_the_same_arm(tmp_path):
    gain = {"metric": "reward/gold", "rule": "effect", "high": "treated", "low": "start", "direction": 1, "margin": 0.5}
    found = found_of(tmp_path, secondary={"gain": gain})
    (one,) = found.secondary
    assert one.verdict.effect == pytest.approx(1.0, abs=0.02) and one.verdict.outcome == CONFIRMED


def test_a_metric_that_no_arm_logs_is_refused_with_those_there_are(tmp_path):
    primary = TRAINED["primary"] | {"metric": "length/maen"}
    with pytest.raises(ConfigError, match="primary.metric=length/maen: arm treated does not measure it; .*length/mean"):
        found_of(tmp_path, primary=primary)


def test_the_spread_within_a_prompt_is_that_of_its_completions(found):
    """Two completions 20 tokens apart: SD 20 / sqrt(2), whatever prompts and seeds differ by."""
    assert unit("base_within_prompt_sd", KNOWN["length/mean"], found.arms["plain"]) == pytest.approx(20 / math.sqrt(2))
    assert unit("base_mean", KNOWN["length/mean"], found.arms["plain"]) == pytest.approx(40.0)
    assert unit("absolute", KNOWN["length/mean"], found.arms["plain"]) == 1.0


def plan_of(study, tmp_path) -> Plan:
    return Plan(study, "cpu", (0, 1, 2, 3, 4), (), tmp_path)


def test_the_same_runs_elsewhere_give_the_same_bytes_without_time_or_path(tmp_path):
    study = study_of()
    texts = [record.of_arms(plan_of(study, root), examine(study, arms_of(root, study)), "code")
             for root in (tmp_path / "a", tmp_path / "b")]  # fmt: skip
    assert texts[0] == texts[1] and str(tmp_path) not in texts[0] and "seconds" not in texts[0]
    kept = json.loads(texts[0])
    assert kept["outcome"] == CONFIRMED and kept["declared"] == study.declared and kept["as_declared"] is True
    assert kept["arms"]["treated"]["metrics"]["length/mean"] == {"start": 40.0, "end": pytest.approx(59.95)}
    assert kept["question"]["zh"] == "会变长吗?" and "会变长吗" in texts[0]


def test_another_margin_gives_another_hash_and_may_give_another_verdict(tmp_path):
    strict = study_of(primary=TRAINED["primary"] | {"margin": 0.6})
    assert strict.declared != study_of().declared
    assert examine(strict, arms_of(tmp_path, strict)).verdict.outcome == EQUIVALENT  # 20 of 24 tokens


def test_the_contrasts_as_a_table(found):
    lines = record.contrasts_csv(found).splitlines()
    assert lines[0].startswith("kind,name,metric,arm,against,outcome,provisional,effect,low,high")
    assert lines[1].startswith("primary,primary,length/mean,treated,plain,CONFIRMED,False,")
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["primary", "primary"], ["control", "placebo"], ["removal", "cured"], ["removal", "costly"],
        ["cost", "cured"], ["cost", "costly"],
    ]  # fmt: skip


# --- the page ---


@pytest.fixture(scope="module")
def html(found, tmp_path_factory):
    hostile = {"en": "Is it <b>longer</b>?", "zh": "会变长吗?"}
    return page.render_arms(plan_of(study_of(question=hostile), tmp_path_factory.mktemp("x")), found, [])


def test_the_page_has_both_languages_the_verdict_and_what_it_does_not_show(html):
    for part in ('lang="zh">会变长吗?', "CONFIRMED", "anything real", "The cure", "Negative controls", " tokens [+19."):
        assert part in html
    assert "verdict.json" in html and "✔ yes" in html and "not shown" in html


def test_the_page_is_self_contained_and_escaped(html):
    assert "<b>longer" not in html and "&lt;b&gt;longer&lt;/b&gt;" in html
    assert "http://" not in html and "https://" not in html and "<script" not in html
    assert "default-src 'none'" in html


def test_the_figure_has_a_row_for_each_contrast_of_the_effect(html):
    assert html.count('<svg aria-hidden="true">') == 4  # treated, placebo, cured, costly
    assert html.count("<title>seed ") == 20


def test_an_interval_over_seeds_alone_says_so(tmp_path):
    by_prompts = found_of(tmp_path)
    assert page.ALONE not in page.sentence(by_prompts.verdict, KNOWN["length/mean"])
    seeds = replace(by_prompts.verdict, prompts=0)
    assert page.sentence(seeds, KNOWN["length/mean"]).split(", ")[-3] == page.ALONE == "over seeds alone"
