"""Every algorithm of conf/algo, three steps on the tiny model, from the command line's config to the report."""

from __future__ import annotations

import fnmatch
import math
import re
from functools import cache

import pytest
from safetensors.torch import load_file

from align.runs import RunRecord, read
from tests.config.test_conf import choices
from tests.end_to_end.helpers import EVEN, ROOT, adapter_moved, execute, no_warmup

STEPS = 3
ONE_UPDATE = ("grpo", "rloo", "dr_grpo")
ON_POLICY = (*ONE_UPDATE, "ppo", "dapo", "gspo", "reinforce_pp")
PREFERENCE = ("dpo", "ipo", "cdpo", "rdpo", "ldpo", "simpo", "orpo", "kto")
POLICIES = ("sft", *PREFERENCE, *ON_POLICY)
TRAINED = (*POLICIES, "reward")
BASELINES = ("best_of_n", "temperature")
ALGORITHMS = (*TRAINED, *BASELINES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """algo -> its run, carried out when first asked for."""
    root = tmp_path_factory.mktemp("runs")

    @cache
    def run(algo: str) -> RunRecord:
        path = execute(root, *no_warmup(algo), f"steps={STEPS}", page=True)
        return read(path, samples=True)

    return run


def test_no_algorithm_of_conf_is_left_out_here():
    assert {name for group, name in choices() if group == "algo"} == set(ALGORITHMS)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_it_finishes_with_a_report(runs, algo):
    run = runs(algo)
    assert run.state == "finished"
    assert "<html" in (run.path / "report.html").read_text()
    assert not (run.path / "error.log").exists()


@pytest.mark.parametrize("algo", TRAINED)
def test_rows_are_a_probe_before_and_after_and_one_row_for_each_step(runs, algo):
    run = runs(algo)
    assert [row["step"] for row in run.phase("probe")] == [0, STEPS]
    assert [row["step"] for row in run.phase("train")] == list(range(1, STEPS + 1))
    assert [(row["phase"], row["step"]) for row in run.rows][0] == ("probe", 0)
    assert [(row["phase"], row["step"]) for row in run.rows][-1] == ("probe", STEPS)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_no_number_is_missing(runs, algo):
    missing = [(row["step"], key) for row in runs(algo).rows for key, value in row.items() if value is None]
    assert missing == []


@pytest.mark.parametrize("algo", TRAINED)
def test_every_matrix_of_its_adapter_has_moved(runs, algo):
    assert adapter_moved(load_file(runs(algo).path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("algo", POLICIES)
def test_kl_is_exactly_zero_before_training_and_not_after(runs, algo):
    first, last = runs(algo).phase("probe")
    assert [first["kl/k1"], first["kl/k3"], first["kl/exact"]] == [0, 0, 0]
    assert last["kl/exact"] > 0 and last["kl/k3"] > 0


@pytest.mark.parametrize("algo", POLICIES)
def test_all_arms_measure_the_same_before_training(runs, algo):
    ours, theirs = runs(algo).phase("probe")[0], runs("dpo").phase("probe")[0]
    same = {key for key in ours.keys() & theirs.keys() if not key.startswith(("seconds", "time/", "memory/"))}
    assert {"kl/exact", "reward/proxy", "length/mean", "policy/entropy", "pref/margin", "accuracy/greedy"} <= same
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("algo", POLICIES)
def test_all_arms_are_probed_on_the_same_answers_before_training(runs, algo):
    def before(run):
        return [row for row in run.samples if row["step"] == 0]

    assert before(runs(algo)) == before(runs("dpo")) != []


@pytest.mark.parametrize("algo", ["dpo", "cdpo", "ldpo"])
def test_the_first_loss_is_ln_2(runs, algo):
    assert runs(algo).phase("train")[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("algo", ONE_UPDATE)
def test_with_one_update_the_first_ratio_is_1_and_no_token_is_clipped(runs, algo):
    first = runs(algo).phase("train")[0]
    assert first["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert first["ratio/clipped"] == 0


@pytest.mark.parametrize("algo", sorted(set(ON_POLICY) - set(ONE_UPDATE)))
def test_with_several_updates_the_policy_has_moved_off_the_one_that_sampled(runs, algo):
    for row in runs(algo).phase("train"):
        assert row["kl_old/k3"] > 0
        assert 0 < abs(row["ratio/mean"] - 1) < 0.1


@pytest.mark.parametrize("algo", sorted(set(ON_POLICY) - {"dapo"}))
def test_on_policy_counts_what_it_samples(runs, algo):
    last = runs(algo).rows[-1]
    group = runs(algo).config["algo"]["group_size"]
    assert (last["prompts"], last["completions"]) == (32 // group * STEPS, 32 * STEPS)
    lengths = [row["length/mean"] for row in runs(algo).phase("train")]
    assert last["gen_tokens"] == round(32 * sum(lengths))


def test_dapo_counts_the_groups_that_it_discards_too(runs):
    last, rows = runs("dapo").rows[-1], runs("dapo").phase("train")
    drawn = sum(row["group/drawn"] for row in rows)
    assert (last["prompts"], last["completions"]) == (drawn, 8 * drawn)
    assert drawn >= 4 * STEPS
    assert last["gen_tokens"] >= round(32 * sum(row["length/mean"] for row in rows))


def test_only_ppo_has_a_critic_which_starts_at_zero_and_moves(runs):
    assert [algo for algo in ON_POLICY if "critic/loss" in runs(algo).phase("train")[0]] == ["ppo"]
    first, *_, last = runs("ppo").phase("train")
    assert (first["value/mean"], first["value/std"], first["critic/explained_variance"]) == (0, 0, 0)
    assert last["value/std"] > 0


# --- best of n ---


@pytest.mark.parametrize("algo", BASELINES)
def test_a_baseline_is_a_probe_for_every_step_and_trains_nothing(runs, algo):
    run = runs(algo)
    assert [(row["phase"], row["step"]) for row in run.rows] == [("probe", step) for step in range(STEPS + 1)]
    assert not (run.path / "adapter").exists()
    assert (run.rows[-1]["prompts"], run.rows[-1]["completions"], run.rows[-1]["gen_tokens"]) == (0, 0, 0)


def test_best_of_n_has_a_bound_on_its_kl_and_measures_none_after_step_0(runs):
    rows = runs("best_of_n").phase("probe")
    assert [rows[0][key] for key in ("kl/k1", "kl/k3", "kl/exact")] == [0, 0, 0]
    assert [row["kl/bound"] for row in rows] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4,
                                                               math.log(8) - 7 / 8])  # fmt: skip
    assert not [key for row in rows[1:] for key in row if key in ("kl/k1", "kl/k3", "kl/exact", "policy/entropy")]


def test_best_of_n_is_never_worse_than_best_of_fewer(runs):
    """Candidates of n are among those of 2n, so it holds for each prompt and not on average only."""
    run = runs("best_of_n")
    curves: dict[str, list[float]] = {}
    for row in run.samples:
        curves.setdefault(row["prompt_id"], []).append(row["reward"])
    assert len(curves) == 4 and all(len(curve) == STEPS + 1 for curve in curves.values())
    assert all(curve == sorted(curve) for curve in curves.values())
    assert sum(curve[-1] for curve in curves.values()) > sum(curve[0] for curve in curves.values())


@pytest.mark.parametrize(("algo", "own"), zip(BASELINES, ("kl/bound", "sampling/temperature"), strict=True))
def test_a_baseline_starts_where_every_other_arm_does(runs, algo, own):
    ours, theirs = (runs(name).phase("probe")[0] for name in (algo, "dpo"))
    same = {key for key in theirs if not key.startswith(("seconds", "time/", "memory/"))}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours.keys() - theirs.keys() == {own}
    first = [[row for row in runs(name).samples if row["step"] == 0] for name in (algo, "dpo")]
    assert first[0] == first[1] != []


def test_colder_is_further_from_the_start_and_more_certain(runs):
    rows = runs("temperature").phase("probe")
    assert [row["sampling/temperature"] for row in rows] == [1.0, 0.85, 0.7, 0.5]
    kl, entropy = ([row[key] for row in rows] for key in ("kl/exact", "policy/entropy"))
    assert kl[0] == 0 and kl == sorted(kl) and kl[-1] > 0.001
    assert entropy == sorted(entropy, reverse=True)


def test_what_top_p_cuts_off_is_further_from_the_start_and_where_it_is_1_nothing_is(tmp_path):
    plain, rows = (read(execute(tmp_path, "algo=temperature", *own)).phase("probe") for own in (
        ("steps=1", "algo.temperatures=[1.0,0.7]"),
        ("algo.temperatures=[1.0,0.7,0.7,1.0]", "algo.top_ps=[1.0,1.0,0.5,0.5]"),
    ))  # fmt: skip
    assert [row["sampling/top_p"] for row in rows] == [1.0, 1.0, 0.5, 0.5]
    for ours, theirs in zip(rows, plain, strict=False):
        same = {key for key in theirs if not key.startswith(("seconds", "time/", "memory/"))}
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert rows[2]["kl/exact"] > rows[1]["kl/exact"] and rows[2]["policy/entropy"] < rows[1]["policy/entropy"]
    # the nearly flat distribution of the tiny model: half of its mass is kept, ln 2 nats at each of 8 tokens at most
    assert 0.6 < rows[3]["kl/exact"] / rows[3]["length/mean"] <= math.log(2)


@pytest.mark.parametrize("algo", ["sft", *PREFERENCE])
def test_off_policy_samples_nothing(runs, algo):
    last = runs(algo).rows[-1]
    assert (last["prompts"], last["completions"], last["gen_tokens"]) == (0, 0, 0)


@pytest.mark.parametrize("algo", POLICIES)
def test_the_probe_s_means_are_those_of_the_samples_it_keeps(runs, algo):
    run = runs(algo)
    for row in run.phase("probe"):
        samples = [sample for sample in run.samples if sample["step"] == row["step"]]
        assert len(samples) == 4
        for key, field in (("kl/k1", "kl"), ("reward/proxy", "reward"), ("length/mean", "tokens")):
            mean = sum(sample[field] for sample in samples) / len(samples)
            assert row[key] == pytest.approx(mean, abs=1e-4), key
        assert row["length/eos_rate"] == sum(sample["finished"] for sample in samples) / len(samples)


def test_the_learned_reward_is_trained_once_and_found_again(tmp_path):
    learned = ("reward=learned", "reward.formula=learned", "reward.learned.steps=2",
               "reward.learned.algo.optimizer.warmup_steps=0", "steps=1")  # fmt: skip
    first = read(execute(tmp_path, *no_warmup("grpo"), *learned))
    stages = sorted(path for path in (tmp_path / "stages").iterdir() if path.is_dir())
    written = [stage.stat().st_mtime_ns for stage in stages]
    second = read(execute(tmp_path, *no_warmup("rloo"), *learned))
    assert len(stages) == 1 and read(stages[0]).state == "finished"
    assert sorted(path for path in (tmp_path / "stages").iterdir() if path.is_dir()) == stages
    assert [stage.stat().st_mtime_ns for stage in stages] == written
    rewards = [run.phase("probe")[0]["reward/learned"] for run in (first, second)]
    assert rewards[0] == rewards[1] != 0


# --- docs/metrics.md ---

POOL = next((ROOT / "align" / "assets").glob("pool-*"))
ANNOTATOR = ("data=annotator", f"data.pool.path={POOL}", "steps=1")
# What no preset logs: gold, terms of a formula, and what is logged only where an axis is set.
OTHERS = {
    "gold": (*no_warmup("dpo"), *ANNOTATOR, "reward=none", "probe.train_pairs=2",
             f"reward.formula={EVEN} - 0.01*length + terminated + 0.1*gold"),
    "learned": (*no_warmup("rloo"), *ANNOTATOR, "reward=learned", "reward.formula=learned", "reward.learned.steps=1",
                "reward.learned.algo.optimizer.warmup_steps=0"),
    "verifier": (*no_warmup("rloo"), "reward=verifier", "reward.formula=verifier", "steps=1",
                 "sampling.max_new_tokens=64", "probe.samples=8"),  # some answers end by chance
    "axes": (*no_warmup("ppo"), "algo.kl.where=reward", "algo.kl.estimator=k1", "algo.kl.coef=0.1",
             "algo.kl.target_nats_per_sequence=1", "algo.kl.horizon_completions=100", "algo.ratio.clip_dual=3",
             "algo.critic.clip=0.2", "algo.scale.clip=1", "algo.truncation.mode=keep", "steps=1"),
    "weights": (*no_warmup("grpo"), "sampling.importance={level:token,bound:truncated,cap:2}", "steps=1"),
    "nucleus": ("algo=temperature", "steps=1", "algo.temperatures=[1.0,1.0]", "algo.top_ps=[1.0,0.5]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def logged(runs, tmp_path_factory) -> set[str]:
    """Every key that any run logs: all algorithms, and the runs of OTHERS."""
    root = tmp_path_factory.mktemp("others")
    records = [runs(algo) for algo in ALGORITHMS] + [read(execute(root, *others)) for others in OTHERS.values()]
    stages = [read(path) for path in (root / "stages").iterdir() if path.is_dir()]
    return {key for record in (*records, *stages) for row in record.rows for key in row}


def documented() -> list[str]:
    """First cells of the tables of docs/metrics.md."""
    cells = re.findall(r"^\|([^|]*`[^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    names = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    assert len(names) > 40
    return [name.replace("<package.module:function>", "*:*").replace("<term>", "*") for name in names]


def test_every_key_that_is_logged_is_defined_in_the_docs(logged):
    patterns = documented()
    assert [key for key in sorted(logged) if not any(fnmatch.fnmatchcase(key, p) for p in patterns)] == []


def test_every_key_that_is_defined_in_the_docs_is_logged(logged):
    assert [pattern for pattern in documented() if not fnmatch.filter(logged, pattern)] == []
