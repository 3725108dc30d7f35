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
from tests.end_to_end.helpers import ROOT, adapter_moved, execute, no_warmup

STEPS = 3
ON_POLICY = ("grpo", "rloo", "dr_grpo")
PREFERENCE = ("dpo", "ipo", "cdpo", "rdpo", "ldpo", "simpo", "orpo", "kto")
POLICIES = ("sft", *PREFERENCE, *ON_POLICY)
ALGORITHMS = (*POLICIES, "reward")


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


@pytest.mark.parametrize("algo", ALGORITHMS)
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


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_key_it_logs_is_defined_in_the_docs(runs, algo):
    patterns = documented()
    keys = {key for row in runs(algo).rows for key in row}
    assert [key for key in sorted(keys) if not any(fnmatch.fnmatchcase(key, p) for p in patterns)] == []


def documented() -> list[str]:
    """First cells of the tables of docs/metrics.md."""
    cells = re.findall(r"^\|([^|]*`[^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    names = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    assert len(names) > 40
    return [name.replace("<package.module:function>", "*:*") for name in names]


@pytest.mark.parametrize("algo", ALGORITHMS)
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


@pytest.mark.parametrize("algo", ON_POLICY)
def test_on_policy_the_first_ratio_is_1_and_no_token_is_clipped(runs, algo):
    first = runs(algo).phase("train")[0]
    assert first["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert first["ratio/clipped"] == 0


@pytest.mark.parametrize("algo", ON_POLICY)
def test_on_policy_counts_what_it_samples(runs, algo):
    last = runs(algo).rows[-1]
    assert (last["prompts"], last["completions"]) == (4 * STEPS, 4 * 8 * STEPS)
    lengths = [row["length/mean"] for row in runs(algo).phase("train")]
    assert last["gen_tokens"] == round(4 * 8 * sum(lengths))


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
    stages = sorted((tmp_path / "stages").iterdir())
    written = [stage.stat().st_mtime_ns for stage in stages]
    second = read(execute(tmp_path, *no_warmup("rloo"), *learned))
    assert len(stages) == 1 and read(stages[0]).state == "finished"
    assert sorted((tmp_path / "stages").iterdir()) == stages
    assert [stage.stat().st_mtime_ns for stage in stages] == written
    rewards = [run.phase("probe")[0]["reward/learned"] for run in (first, second)]
    assert rewards[0] == rewards[1] != 0
