"""Study files: what is missing, too much or contradictory is refused by name; what decides is hashed."""

from __future__ import annotations

import copy

import pytest

from align.refusals import ConfigError
from align.study import spec
from tests.study.fakes import TRAINED, declared, study_of, write_study

EXACT = {key: TRAINED[key] for key in spec.PROSE} | {"kind": "exact", "module": "align.exact.x"}


def without(key: str) -> dict:
    return {name: value for name, value in TRAINED.items() if name != key}


@pytest.mark.parametrize("key", [*spec.PROSE, *spec.DECIDES])
def test_a_missing_key_is_named(key):
    with pytest.raises(ConfigError, match=f"^{key}(=None|\\.| is missing)"):
        spec.parse(without(key))


def test_an_unknown_key_is_named_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match='marms=.*there is no such key; did you mean "arms"'):
        spec.parse(declared(marms={}))
    with pytest.raises(ConfigError, match='primary.heigh=.*did you mean "high"'):
        spec.parse(declared(primary=TRAINED["primary"] | {"heigh": 1}))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("primary", {"high": "other"}, "primary.high=other: must be one of plain, treated"),
        ("primary", {"low": "treated"}, "primary.low=treated: is the arm `high` itself"),
        ("primary", {"direction": 0}, "primary.direction=0: must be 1 or -1"),
        ("primary", {"margin": 0}, "primary.margin=0.0: must be above 0"),
        ("primary", {"margin": "much"}, "primary.margin=much: must be a number"),
        ("primary", {"of": "base_median"}, "primary.of=base_median: must be one of"),
        ("primary", {"rule": "affect"}, 'primary.rule=affect: .*did you mean "effect"'),
        ("gates", {"kl/exact": [2, 1]}, "gates.kl/exact=.*the first must be below the second"),
        ("gates", {"kl/exact": [2]}, r"gates.kl/exact=.*\[lowest, highest\]"),
        ("arms", {"start": []}, "arms=start: .*and not start"),
        ("arms", {"placebo": []}, "controls=placebo: two arms have this name"),
        ("arms", {"plain": ["seed=1"]}, "arms.plain.seed=seed=1: is the study's to choose"),
        ("arms", {"plain": "algo=dpo"}, "arms.plain=algo=dpo: must be a list of KEY=VALUE"),
        ("beside", {"cpu": 6}, "beside.cpu=6: is how many of the 5 seeds"),
        ("beside", {"gpu": 1}, "beside.gpu"),
        ("screen", ["gpu"], "screen=gpu: must be one of cpu"),
        ("screen", ["cpu"], "screen=.*leaves no tier that decides the claim"),
        ("screen", ["cpu", "cpu"], "screen=.*each once"),
        ("screen", [], "screen=.*each once"),
        ("screen", "cpu", "screen=cpu: must be a list of tiers"),
        ("cure", {"removes": 2}, "cure.removes=2.0: is a share"),
        ("cure", {"arm": "placebo"}, "cure.arm=placebo: must be one of treated, plain"),
    ],
)
def test_what_cannot_be_is_refused_with_key_value_and_fix(part, change, said):
    with pytest.raises(ConfigError, match=said):
        change = copy.deepcopy(TRAINED.get(part, {})) | change if isinstance(change, dict) else change
        spec.parse(declared(**{part: change}))


def test_mitigations_need_a_declared_cure_and_a_cure_needs_mitigations():
    with pytest.raises(ConfigError, match="cure=None: declares when a mitigation works"):
        spec.parse(without("cure"))
    with pytest.raises(ConfigError, match="cure="):
        spec.parse(without("mitigations"))


def test_a_dose_needs_four_levels():
    arms = {f"a{n}": [f"algo.beta={n}"] for n in range(4)}
    primary = {"metric": "length/mean", "rule": "dose", "direction": 1, "margin": 1}
    changes = {"arms": arms, "cure": TRAINED["cure"] | {"arm": "a3"}}
    dose = study_of(**changes, primary=primary | {"levels": {f"a{n}": n for n in range(4)}}).primary
    assert (dose.treated, dose.base) == ("a3", "a0")
    with pytest.raises(ConfigError, match="primary.levels=.*needs 4 different levels"):
        study_of(**changes, primary=primary | {"levels": {"a0": 0, "a1": 1, "a3": 1}})


def test_a_peak_may_be_along_the_steps_of_one_arm():
    primary = {"metric": "reward/gold", "rule": "peak", "high": "treated", "along": "kl/exact", "margin": 0.1}
    peak = study_of(primary=primary).primary
    assert (peak.treated, peak.base, peak.along, peak.arms) == ("treated", "start", "kl/exact", ["treated"])
    with pytest.raises(ConfigError, match="primary.high is missing"):
        spec.parse(declared(primary={key: value for key, value in primary.items() if key != "high"}))
    with pytest.raises(ConfigError, match="primary.levels=.*there is no such key"):
        spec.parse(declared(primary=primary | {"levels": {"plain": 1, "treated": 2}}))
    with pytest.raises(ConfigError, match="primary.along=.*there is no such key"):
        spec.parse(declared(primary=TRAINED["primary"] | {"along": "kl/exact"}))


def test_a_step_is_a_whole_number_after_the_start():
    assert study_of(primary=TRAINED["primary"] | {"at": 2}).primary.at == 2
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(ConfigError, match=f"primary.at={wrong}: must be a step after the start"):
            spec.parse(declared(primary=TRAINED["primary"] | {"at": wrong}))


def test_a_gate_is_every_arms_or_of_the_arms_it_names():
    assert study_of().gates == {"plain": {"kl/exact": (0.5, 10)}, "treated": {"kl/exact": (0.5, 10)}}
    one = study_of(gates={"kl/exact": {"plain": [0, 1]}, "length/mean": [1, 2]}).gates
    assert one == {"plain": {"kl/exact": (0, 1), "length/mean": (1, 2)}, "treated": {"length/mean": (1, 2)}}
    with pytest.raises(ConfigError, match="gates.kl/exact=placebo: must be one of plain, treated"):
        spec.parse(declared(gates={"kl/exact": {"placebo": [0, 1]}}))


def test_a_level_in_the_middle_may_be_cured():
    arms = {f"a{n}": [f"algo.beta={n}"] for n in range(4)}
    primary = {
        "metric": "length/mean",
        "rule": "dose",
        "direction": 1,
        "margin": 1,
        "levels": {f"a{n}": n for n in range(4)},
    }
    assert study_of(arms=arms, primary=primary, cure=TRAINED["cure"] | {"arm": "a1"}).cure.arm == "a1"


def test_seeds_may_be_declared_for_each_tier():
    tiers = {"cpu": ["steps=1"], "gpu": ["steps=2"]}
    assert study_of(tiers=tiers).seeds == {"cpu": (0, 1, 2, 3, 4), "gpu": (0, 1, 2, 3, 4)}
    assert study_of(tiers=tiers, seeds={"cpu": [0], "gpu": [0, 1]}).seeds == {"cpu": (0,), "gpu": (0, 1)}
    for wrong in ({"cpu": [0]}, [0, 0], [], ["a"], [True]):
        with pytest.raises(ConfigError, match="seeds"):
            study_of(tiers=tiers, seeds=wrong)


def test_the_hash_follows_what_decides_and_not_the_prose():
    first = study_of().declared
    assert study_of(claim="said in other words").declared == first
    for change in ({"primary": TRAINED["primary"] | {"margin": 0.11}}, {"gates": {"kl/exact": [0.4, 10]}},
                   {"arms": TRAINED["arms"] | {"more": ["algo.beta=9"]}}, {"seeds": [0, 1]}):  # fmt: skip
        assert study_of(**change).declared != first
    two = {"tiers": {"cpu": ["steps=4"], "gpu": ["steps=8"]}}
    assert study_of(**two, screen=["cpu"]).screen == ("cpu",) and study_of(**two).screen == ()
    assert study_of(**two, screen=["cpu"]).declared != study_of(**two).declared


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path):
    file = write_study(tmp_path / "mine.yaml", kind="trained and exact")
    with pytest.raises(ConfigError, match=r"mine.yaml: kind=trained and exact: must be one of trained, meas"):
        spec.load(file)
    file.write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"mine.yaml: it holds no mapping"):
        spec.load(file)
    with pytest.raises(ConfigError, match='study=dpo_lenght: .*did you mean "dpo_length"'):
        spec.find("dpo_lenght")


def test_an_exact_study_has_a_module_and_no_arms():
    assert spec.parse(EXACT).module == "align.exact.x"
    with pytest.raises(ConfigError, match="arms="):
        spec.parse(EXACT | {"arms": {}})


def test_a_measured_study_names_a_module_and_a_trained_one_has_none():
    with pytest.raises(ConfigError, match='module=head: must be one of .*did you mean "heads"'):
        study_of(kind="measured", module="head")
    with pytest.raises(ConfigError, match="module is missing"):
        study_of(kind="measured")
    with pytest.raises(ConfigError, match="module=.heads.: there is no such key"):
        study_of(module="heads")
    assert study_of(kind="measured", module="heads").declared != study_of().declared


def test_a_claim_of_equality_has_no_negative_control():
    primary = {"metric": "length/mean", "rule": "equivalence", "high": "treated", "low": "plain", "margin": 0.1}
    with pytest.raises(ConfigError, match="a claim of equality has no negative control"):
        study_of(primary=primary)
