"""Studies of reward heads: settings, the best of n of known proxies, and a whole study whose answers are made up."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from align.data.annotator import pool_prompts, prompts
from align.maths.best_of_n import kl_bound
from align.refusals import ConfigError
from align.runs import RunRecord
from align.study import __main__ as cli
from align.study import engine, heads, judged, settings, spec, verdict
from align.study.ground import Taught
from align.study.heads import Ground, Judged
from align.study.rules import CONFIRMED, INVALID
from reward_models.annotator import Answer, fit_scale, gold
from tests.study.fakes import TRAINED

SETTINGS = ("heads.depths=[0.667]", "heads.members=1", "heads.combine=mean", "heads.coef=null", "heads.rank=3",
            "heads.ridge=1.5")  # fmt: skip
BASE = ["algo=best_of_n", "data=annotator", "reward=learned", "model=tiny", "dtype=float32", "device=cpu",
        "tracker=none", "probe.samples=16", "steps=2", "data.labels.pairs=200", "data.labels.seed=${seed}",
        *SETTINGS]  # fmt: skip
STUDY = TRAINED | {
    "kind": "measured",
    "module": "heads",
    "base": BASE,
    "tiers": {"cpu": ["probe.prompts=30"]},
    "arms": {"noisy": ["data.labels.flips=0.4"], "clean": ["data.labels.flips=0"]},
    "controls": {"shuffled": ["data.labels.flips=0.5"]},
    "primary": {"metric": "reward/gold", "rule": "effect", "high": "clean", "low": "noisy", "direction": 1,
                "margin": 0.1, "of": "base_within_prompt_sd"},
    "gates": {"rm/gold_accuracy": {"clean": [0.6, 1]}, "pool/truncated": [0, 0.1]},
}  # fmt: skip
STUDY = {key: value for key, value in STUDY.items() if key not in ("mitigations", "cure")}


# --- settings ---


def test_settings_are_read_and_the_rest_is_left_to_the_run():
    runs, own = settings.split("heads", ["algo=dpo", *SETTINGS])
    assert runs == ("algo=dpo",) and own == SETTINGS
    read = settings.read("heads", own)
    assert (read.depths, read.members, read.coef, read.rank, read.ridge) == ((0.667,), 1, None, 3, 1.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("heads.rnak=3", 'heads.rnak=3: .*did you mean "rank"'),
        ("heads.rank=0", "heads.rank=0: must be >= 1"),
        ("heads.rank=2.5", "heads.rank=2.5: must be a whole number"),
        ("heads.depths=1", "heads.depths=1: must be a list of numbers"),
        ("heads.depths=[]", "heads.depths=.*must name one depth"),
        ("heads.depths=[1.2]", "heads.depths=1.2: must be > 0 and <= 1"),
        ("heads.depths=[0.5,1]", "heads.members=1: must be 2 or more"),
        ("heads.combine=min", "heads.combine=min: must be one of mean, worst_case"),
        ("heads.combine=worst_case", "heads.combine=worst_case: one member alone is its mean"),
        ("heads.coef=0.5", "heads.coef=0.5: weighs the variance of combine=uncertainty"),
        ("heads.ridge=-1", "heads.ridge=-1: must be >= 0"),
        ("heads.ridge=[", "heads.ridge=.*no YAML"),
    ],
)
def test_a_head_that_cannot_be_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        settings.read("heads", engine.merged(SETTINGS, [change]))


def test_a_setting_that_is_not_declared_is_missing():
    with pytest.raises(ConfigError, match="heads.ridge=: is missing"):
        settings.read("heads", SETTINGS[:-1])


def test_weights_of_different_layers_are_not_averaged():
    changed = engine.merged(SETTINGS, ["heads.members=2", "heads.depths=[0.5,1]", "heads.combine=weights"])
    with pytest.raises(ConfigError, match="weights of different layers cannot be averaged"):
        settings.read("heads", changed)


def planned(tmp_path, *extra, **changes) -> engine.Plan:
    return engine.plan(spec.parse(STUDY | changes), "cpu", None, extra, tmp_path)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("steps=3", "probe.samples=16: best of 2.3 needs 32 answers"),
        ("steps=1", "steps=1: is doublings of n: two or more make a curve"),
        ("reward.formula=learned+length", "a head stands in for the learned reward"),
        ("algo=rloo algo.optimizer.warmup_steps=0", "algo=rloo: module=heads judges by algo=best_of_n"),
        ("heads.rnak=3", "arm noisy: heads.rnak=3"),
    ],
)
def test_an_experiment_that_heads_do_not_fit_is_refused(tmp_path, extra, said):
    with pytest.raises(ConfigError, match=said):
        engine.expand(planned(tmp_path, *extra.split()))


def test_arms_may_differ_in_their_heads_alone_but_must_differ(tmp_path):
    arms = {"noisy": [], "clean": ["heads.ridge=9"]}
    tasks = engine.expand(planned(tmp_path, arms=arms))
    assert [(t.arm, t.own.ridge) for t in tasks[::5]] == [("noisy", 1.5), ("clean", 9.0), ("shuffled", 1.5)]
    with pytest.raises(ConfigError, match="arms noisy and clean: both are the same experiment"):
        engine.expand(planned(tmp_path, arms={"noisy": [], "clean": ["heads.ridge=1.5"]}))


# --- the best of n ---


def judged_of(gold_table: np.ndarray) -> Judged:
    shape = gold_table.shape
    names = tuple(f"p{x}" for x in range(shape[0]))
    return Judged(names, {}, gold_table, np.arange(gold_table.size, dtype=float).reshape(shape), np.ones(shape))


def curve_of(judged: Judged, proxy: np.ndarray, doublings: int):
    return heads.curve(judged, proxy, RunRecord(Path(), {"seed": 0}, {}, "finished", ()), doublings)


def test_by_gold_itself_step_s_is_the_expected_best_of_two_to_the_s():
    table = np.random.default_rng(0).normal(size=(3, 8))
    pairs, fours = ([[max(group) for group in combinations(row, n)] for row in table] for n in (2, 4))
    assert curve_of(judged_of(table), table, 2).value(2, "reward/gold") == pytest.approx(np.mean(fours))
    run = curve_of(judged_of(table), table, 1)
    assert run.value(0, "reward/gold") == pytest.approx(table.mean())
    assert run.value(1, "reward/gold") == pytest.approx(np.mean(pairs)) == run.value(1, "reward/proxy")
    assert run.value(1, "kl/bound") == pytest.approx(math.log(2) - 0.5)
    assert run.value(1, "rm/gold_accuracy") == 1.0 and run.value(1, "pool/truncated") == 0.0
    assert run.samples[1]["p1", 0]["gold"] == pytest.approx(np.mean(pairs[1]))
    assert len(run.samples[0]) == 24 and run.samples[0]["p2", 7]["gold"] == table[2, 7]


def test_by_the_opposite_of_gold_it_falls_and_the_reward_is_never_right():
    table = np.random.default_rng(0).normal(size=(3, 16))
    run = curve_of(judged_of(table), -table, 2)
    assert run.value(2, "reward/gold") < run.value(1, "reward/gold") < run.value(0, "reward/gold")
    assert run.value(2, "rm/gold_accuracy") == 0.0 and run.value(2, "bon/proxy_rho") == 1.0
    assert run.value(2, "bon/a") < 0 < run.value(2, "pool/oracle_gain")


def test_the_oracles_gain_is_in_standard_deviations_within_a_prompt():
    """Of four answers -1, -1, 1, 1, the best of one is their mean; of eight with the same two values 2 sqrt(2/7)."""
    table = np.array([[-1.0] * 4 + [1.0] * 4])
    run = curve_of(judged_of(table + 5), np.arange(8.0)[None], 1)
    # the best of 8 / 4 = 2: of 28 pairs 6 have no 1, so 1 - 2 * 6 / 28 above the mean; SD sqrt(8 / 7)
    assert run.value(1, "pool/oracle_gain") == pytest.approx((1 - 12 / 28) / math.sqrt(8 / 7))


def test_the_parabola_is_found_and_its_means_are_those_of_the_prompts():
    d = np.sqrt([kl_bound(2**step) for step in range(5)])
    a, b = np.array([2.0, 1.0]), np.array([0.5, -1.0])
    found = heads.parabola(7 + d[:, None] * (a - b * d[:, None]))
    assert found[0] == pytest.approx(a) and found[1] == pytest.approx(b)


# --- a whole study on answers that are made up: features say what gold is, and noise ---


def made_up(tasks) -> Ground:
    rng = np.random.default_rng(0)

    def answers(asked, samples):
        def one(prompt):
            words = [*prompt.info["words"], *prompt.info["keywords"]]
            said = rng.choice(words, size=int(rng.integers(1, 30)))
            ending = rng.choice([".", ""])
            return Answer(" ".join(said).replace("*", "") + ending, int(rng.integers(8, 60)), True, prompt.info)

        return {prompt.id: [one(prompt) for _ in range(samples)] for prompt in asked}

    train, asked = answers(prompts("train"), 8), prompts("eval")[: tasks[0].experiment.probe.prompts]
    scale = fit_scale(list(train.values()))

    def features(groups):
        table = np.array([[gold(answer, scale) for answer in group] for group in groups.values()])
        noise = rng.normal(size=(*table.shape, 6))
        noise[..., 0] += 1.5 * table
        return heads.heads.centred(noise)

    held = answers(asked, tasks[0].experiment.probe.samples)
    judged = heads._judged(held, {0.667: features(held)}, scale)
    taught = Taught(train, {0.667: features(train).reshape(-1, 6)}, scale)
    return Ground(taught, judged, {"start_fingerprint": "s", "data_fingerprint": "d"})


@pytest.fixture
def on_made_up(monkeypatch):
    monkeypatch.setattr(heads, "lay", made_up)


def found_of(tmp_path, **changes):
    chosen = planned(tmp_path, **changes)
    return verdict.examine(chosen.study, heads.measure(engine.expand(chosen)))


def test_clean_labels_beat_noisy_ones_and_coin_flips_do_not(on_made_up, tmp_path):
    found = found_of(tmp_path)
    assert found.verdict.outcome == CONFIRMED and found.verdict.effect > 0 and found.verdict.seeds == 5
    assert found.controls[0].verdict.outcome != CONFIRMED
    assert {gate.arm: gate.passed for gate in found.gates if gate.key == "rm/gold_accuracy"} == {"clean": True}


def test_a_gate_of_one_arm_is_not_asked_of_another(on_made_up, tmp_path):
    strict = {"rm/gold_accuracy": {"noisy": [0.99, 1]}}
    found = found_of(tmp_path, gates=strict)
    assert found.verdict.outcome == INVALID and "of arm noisy" in found.verdict.reason
    assert "of arm clean" not in found.verdict.reason


def test_the_same_seed_gives_the_same_and_another_gives_another(on_made_up, tmp_path):
    tasks = engine.expand(planned(tmp_path, seeds=[0, 1]))
    ground = made_up(tasks)
    one, again, other = (heads.judge(ground, tasks[i]).value(2, "reward/gold") for i in (0, 0, 1))
    assert one == again != other


def test_averaged_weights_of_members_give_the_mean_of_their_rewards(on_made_up, tmp_path):
    arms = {"noisy": ["heads.members=3"], "clean": ["heads.members=3", "heads.combine=weights"]}
    found = heads.measure(engine.expand(planned(tmp_path, arms=arms, seeds=[0])))
    mean, weights = (found[name].seeds[0].value(2, "reward/gold") for name in arms)
    assert weights == pytest.approx(mean, abs=1e-12)


def test_a_peak_along_the_steps_stands_at_the_root_of_their_kl(on_made_up, tmp_path):
    primary = {"metric": "reward/gold", "rule": "peak", "high": "clean", "along": "kl/bound", "margin": 0.1}
    found = found_of(tmp_path, primary=primary)
    levels = judged._steps(found.arms["clean"], found.primary.metric, "kl/bound")
    assert list(levels) == pytest.approx([math.sqrt(kl_bound(n)) for n in (1, 2, 4)])
    assert found.verdict.outcome == "REVERSED"  # by a reward that knows gold, gold only rises
    assert (found.primary.high, found.primary.low) == ("clean", judged.BEST)
    with pytest.raises(ConfigError, match="along=kl/none: arm clean does not measure it at every step"):
        found_of(tmp_path, primary=primary | {"along": "kl/none"})


def test_a_contrast_may_be_at_an_earlier_step(on_made_up, tmp_path):
    early = STUDY["primary"] | {"at": 1}
    found = found_of(tmp_path, secondary={"early": early})
    at = {name: np.mean([run.value(1, "reward/gold") for run in arm.seeds]) for name, arm in found.arms.items()}
    assert found.secondary[0].verdict.effect == pytest.approx(at["clean"] - at["noisy"])


def test_the_command_writes_page_and_verdict(on_made_up, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY, allow_unicode=True), encoding="utf-8")
    arguments = [f"study={tmp_path}/mine.yaml", f"out={tmp_path}/out", f"runs_root={tmp_path}/runs"]
    assert cli.main(arguments) == 0 and "CONFIRMED" in capsys.readouterr().out
    kept = (tmp_path / "out/made_up/verdict.json").read_bytes()
    assert json.loads(kept)["arms"]["clean"]["metrics"]["rm/gold_accuracy"]["end"] > 0.6
    page = (tmp_path / "out/made_up/index.html").read_text("utf-8")
    assert "frontier-gold" in page and "rm/gold_accuracy" in page and "align.compare" not in page
    assert cli.main([*arguments, "jobs=2"]) == 1 and "the study is measured in this process" in capsys.readouterr().err
    assert cli.main([*arguments, "heads.rank=7"]) == 1
    assert "the study as declared, tier cpu, lies there; give this another out=" in capsys.readouterr().err
    assert (tmp_path / "out/made_up/verdict.json").read_bytes() == kept
    arguments[1] = f"out={tmp_path}/tried"
    assert cli.main([*arguments, "heads.rank=7"]) == 1
    assert capsys.readouterr().err == "error: rank=7: 2352 answers vary in 6 directions only; lower the rank\n"


def test_arms_that_would_be_judged_on_other_answers_are_refused(tmp_path):
    arms = {"noisy": [], "clean": ["data.pool.temperature=0.5"]}
    with pytest.raises(ConfigError, match="arms noisy and clean: all are measured on the same answers"):
        heads.measure(engine.expand(planned(tmp_path, arms=arms)))


def test_the_pool_of_the_probes_prompts_shares_none_with_training():
    assert not {p.topic for p in prompts("train")} & {p.topic for p in prompts("eval")}
    assert not {p.id for p in pool_prompts()} & {p.id for p in prompts("eval")}
