from __future__ import annotations

import pytest

from align.report.arms import differing, flatten, group, labels, load
from align.rows import RunError
from tests.runs.fake_runs import config, write_run, write_sweep


def arms_of(tmp_path, *settings):
    return group(load([write_run(tmp_path / str(n), each) for n, each in enumerate(settings)]))


def labels_of(*settings):
    return labels([flatten({k: v for k, v in each.items() if k not in ("seed", "run_dir")}) for each in settings])


def test_runs_that_differ_only_in_the_seed_are_one_arm(tmp_path):
    arms, left_out = group(load(write_sweep(tmp_path)))
    assert [(arm.label, [run.seed for run in arm.seeds]) for arm in arms] == [
        ("grpo", [0, 1, 2]), ("dpo", [0, 1, 2]), ("sft", [0, 1, 2])
    ]  # fmt: skip
    assert left_out == []


def test_where_a_run_is_written_does_not_make_it_another_arm(tmp_path):
    arms, _ = arms_of(tmp_path, config(seed=0, run_dir="a"), config(seed=1, run_dir="b", tracker="wandb"))
    assert len(arms) == 1


def test_which_servers_sampled_does_not_make_it_another_arm_but_that_servers_did(tmp_path):
    def served(**where):
        plain = config()
        return {**plain, "sampling": {**plain["sampling"], "vllm": {"gap": 0.1, **where}}}

    arms, _ = arms_of(tmp_path, {**served(urls=["http://a"]), "seed": 0}, {**served(python="p", retries=1), "seed": 1})
    assert len(arms) == 1
    arms, _ = arms_of(tmp_path / "more", config(), {**served(urls=["http://a"]), "seed": 1})
    assert len(arms) == 2


def test_arms_are_called_after_the_one_key_they_differ_in():
    found = labels_of(config(algo__kl__coef=0.0), config(algo__kl__coef=0.1))
    assert found == ["kl.coef=0", "kl.coef=0.1"]


def test_keys_of_another_algorithm_stay_out_of_the_name():
    assert labels_of(config("grpo"), config("dpo")) == ["grpo", "dpo"]


def test_a_name_is_followed_by_what_differs_within_it():
    found = labels_of(config("grpo"), config("dpo", algo__beta=0.1), config("dpo", algo__beta=0.5))
    assert found == ["grpo", "dpo, beta=0.1", "dpo, beta=0.5"]


def test_names_stay_apart_when_too_long_to_be_told_in_full():
    changes = [{"steps": 1, "dtype": "a", "device": "b"}, {"steps": 2, "dtype": "c", "device": "d"}]
    same = [{**changes[0], "sampling__rows": 1}, {**changes[0], "sampling__rows": 2}]
    found = labels_of(*(config(**each) for each in (*same, changes[1])))
    assert len(set(found)) == 3


def test_a_missing_key_is_not_null():
    assert differing([{"a": None}, {}]) == ["a"]
    assert differing([{"a": None, "b": 1}, {"a": None, "b": 1}]) == []


def test_a_repeated_seed_counts_once_and_the_run_that_got_further_stays(tmp_path):
    long = write_run(tmp_path / "long", config(seed=0))
    short = write_run(tmp_path / "short", config(seed=0), steps=(0, 10), state="failed")
    for paths in ([long, short], [short, long]):
        (arm,), left_out = group(load(paths))
        assert [run.record.path for run in arm.seeds] == [long]
        assert [run.record.path for run in left_out] == [short]


def test_a_directory_named_twice_is_read_once(tmp_path):
    path = write_run(tmp_path / "a", config())
    assert len(load([path, path])) == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("status.json", '{"state": "fin', "damaged"),
        ("status.json", "[]", "damaged"),
        ("meta.json", "[1, 2]", "meta.json"),
        ("config.yaml", "just words", "config.yaml"),
        ("metrics.jsonl", '{"phase": "probe", "step": "ten"}\n', "step='ten'"),
        ("metrics.jsonl", 'not json\n{"phase": "probe", "step": 0}\n', "line 1"),
    ],
)
def test_a_damaged_run_is_refused_with_its_path(tmp_path, file, content, said):
    path = write_run(tmp_path / "run", config())
    (path / file).write_text(content)
    with pytest.raises(RunError, match=said) as refused:
        load([path])
    assert str(path) in str(refused.value)


def test_a_torn_last_line_is_not_damage(tmp_path):
    path = write_run(tmp_path / "run", config())
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (path / name).open("a") as file:
            file.write('{"phase": "probe", "step": 30, "kl/ex')
    (run,) = load([path])
    assert run.last == 20


def test_an_arm_with_a_group_that_is_null_elsewhere_is_not_said_to_lack_it():
    without, served = {"sampling.vllm": None}, {"sampling.vllm.gap": 0.2}
    assert labels([without, served]) == ["sampling.vllm=null, no sampling.vllm.gap", "sampling.vllm.gap=0.2"]
