from __future__ import annotations

from align.report.arms import group, load
from align.report.checks import warnings
from tests.runs.fake_runs import config, write_run, write_sweep


def warnings_of(*paths):
    return warnings(*group(load(paths)))


def test_a_sound_comparison_has_no_warnings(tmp_path):  # the seeds differ at step 0, as the probe draws by seed
    assert warnings_of(*write_sweep(tmp_path)) == []


def test_another_start_is_named_with_its_arm(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"))
    (said,) = warnings_of(first, write_run(tmp_path / "b", config("dpo"), meta={"start_fingerprint": "feedfeed"}))
    assert "start weights" in said and "feedfeed in dpo" in said and "57a4757a47 in grpo" in said


def test_other_data_are_named_and_step_zero_is_then_not_compared(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"))
    other = write_run(tmp_path / "b", config("dpo"), meta={"data_fingerprint": "feedfeed"}, values={"length/mean": 1})
    (said,) = warnings_of(first, other)
    assert "same data" in said and "feedfeed in dpo" in said


def test_a_start_that_depends_on_the_seed_is_compared_seed_by_seed(tmp_path):
    def run(algo, seed, start):
        return write_run(tmp_path / f"{algo}{seed}{start}", config(algo, seed), meta={"start_fingerprint": start})

    runs = [run("grpo", 0, "s0"), run("grpo", 1, "s1"), run("dpo", 0, "s0")]
    assert warnings_of(*runs, run("dpo", 1, "s1")) == []
    (said,) = warnings_of(*runs, run("dpo", 1, "s2"))
    assert "s1 in grpo seed 1; s2 in dpo seed 1" in said


def test_arms_with_one_start_must_agree_at_step_zero(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"), values={"length/mean": 40})
    other = write_run(tmp_path / "b", config("dpo"), values={"length/mean": 41})
    (said,) = warnings_of(first, other)
    assert "not equal at step 0: length/mean is 40 in grpo; 41 in dpo." in said
    assert "also differ" not in said  # nothing but the length; time/probe differs too, and is no result


def test_keys_that_only_one_arm_logs_are_no_disagreement(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"), values={"accuracy/greedy": 0.5})
    assert warnings_of(first, write_run(tmp_path / "b", config("dpo"))) == []


def test_another_reward_is_said_once_and_not_as_a_broken_start(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"))
    other = config("grpo", reward__formula="gold")
    (said,) = warnings_of(first, write_run(tmp_path / "b", other, values={"reward/proxy": 9.0}))
    assert "reward config differs" in said


def test_another_ruler_is_named_by_its_keys(tmp_path):
    first = write_run(tmp_path / "a", config("grpo"))
    other = config("dpo", probe__prompts=64, sampling__max_new_tokens=32, probe__every=5)
    (said,) = warnings_of(first, write_run(tmp_path / "b", other, values={"length/mean": 1.0}))
    assert "sampling.max_new_tokens and probe.prompts differ" in said


def test_unfinished_runs_say_how_far_they_got(tmp_path):
    write_run(tmp_path / "a", config(seed=0))
    write_run(tmp_path / "b", config(seed=1), steps=(0, 10), state="failed")
    write_run(tmp_path / "c", config(seed=2), steps=(), state="running")
    write_run(tmp_path / "d", config(seed=3), state="interrupted")
    assert warnings_of(*sorted(tmp_path.iterdir())) == [
        "grpo seed 1: failed, last probe at step 10: not in the numbers at step 20.",
        "grpo seed 2: stopped, no probe yet: enters no number.",
        "grpo seed 3: interrupted, last probe at step 20.",
    ]


def test_a_finished_run_whose_rows_do_not_reach_its_end_is_told(tmp_path):
    run = write_run(tmp_path / "a", config("grpo"), steps=(0, 10))
    (found,) = warnings(*group(load([run])))
    assert "finished, but its last probe is of step 10 of 20: rows are missing" in found


def step_zero(tmp_path, key, *values, tokens=96):
    paths = [
        write_run(tmp_path / str(i), config(algo, sampling={"max_new_tokens": tokens}), values={key: value})
        for i, (algo, value) in enumerate(zip(("grpo", "dpo"), values, strict=True))
    ]
    return warnings_of(*paths)


def test_what_is_zero_in_truth_may_differ_by_rounding_and_no_more(tmp_path):
    """2e-5 nats for each of 96 tokens: 1.92e-3."""
    assert step_zero(tmp_path / "a", "pref/chosen_logprob", 0.0, -1.9e-3) == []
    (said,) = step_zero(tmp_path / "b", "pref/chosen_logprob", 0.0, -2.0e-3)
    assert "pref/chosen_logprob is" in said
    assert step_zero(tmp_path / "c", "pref/accuracy", 0.5, 0.54) == []  # ties that rounding unties
    (said,) = step_zero(tmp_path / "d", "length/mean", 40.0, 40.0001)
    assert "length/mean is" in said


def test_a_key_of_a_file_is_text_and_nothing_else(tmp_path):
    (said,) = step_zero(tmp_path, "\x1b[31mevil/x", 1.0, 2.0)
    assert "\x1b" not in said and "␛[31mevil/x is" in said


def test_who_samples_for_training_is_no_part_of_the_ruler(tmp_path):
    ours = write_run(tmp_path / "a", config("grpo", sampling={"max_new_tokens": 8}))
    theirs = write_run(tmp_path / "b", config("grpo", 1, sampling={
        "max_new_tokens": 8, "vllm": {"urls": ["http://127.0.0.1:1"]}, "importance": {"level": "token"}}))  # fmt: skip
    assert not any("measured in the same way" in said for said in warnings_of(ours, theirs))
    assert not any("vllm" in said for said in warnings_of(ours, theirs))


def test_seeds_that_differ_in_circumstances_or_in_a_null_are_one_arm(tmp_path):
    """As config_hash has it: where a run is kept is no part of the experiment, nor a setting that it has not got."""
    first = write_run(tmp_path / "a", config("grpo", checkpoint={"every": 5, "keep": 1}))
    other = write_run(tmp_path / "b", config("grpo", 1, checkpoint={"every": 10, "keep": 1}, probe__train_pairs=None))
    arms, left_out = group(load([first, other]))
    assert [len(arm.seeds) for arm in arms] == [2] and not left_out and warnings_of(first, other) == []


def test_a_config_whose_groups_are_none_is_compared_all_the_same(tmp_path):
    ends = (("grpo", 0.0), ("dpo", 1.0))
    paths = [write_run(tmp_path / name, config(name, sampling=3), values={"kl/k1": value}) for name, value in ends]
    assert any("kl/k1 is" in said for said in warnings_of(*paths))
