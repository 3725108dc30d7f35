"""Every file under conf/ composes, and every schema field is read by somebody."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import fields, is_dataclass
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from align import schema
from align.config import check, config_hash, plain
from align.run import CONF

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"algo": 19, "model": 8, "data": 7, "reward": 4, "probe": 2, "sampling": 5, "guard": 1, "checkpoint": 1}
NOT_CHOICES = {"lora"}  # included by others, never chosen
VLLM = f"sampling.vllm.python={sys.executable}"
NEEDS = {("data", "jsonl"): ["data.path=pairs.jsonl"], ("sampling", "vllm"): [VLLM]}


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("run", overrides=list(overrides)))


def choices() -> list[tuple[str, str]]:
    return [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


def test_conf_has_the_files_it_should():
    found = {group: sum(1 for g, _ in choices() if g == group) for group in GROUPS}
    assert found == GROUPS


def test_help_lists_what_can_be_chosen():
    said = (CONF / "hydra" / "help" / "align.yaml").read_text()
    for group in ("algo", "data", "model", "probe", "reward", "sampling"):
        listed = re.search(rf"^  {group}: ((?:.+,\n)*.+)$", said, re.MULTILINE)[1]
        assert {name.strip() for name in listed.split(",")} == {c for g, c in choices() if g == group} - NOT_CHOICES


@pytest.mark.parametrize(("group", "name"), [c for c in choices() if c[1] not in NOT_CHOICES])
def test_every_choice_composes_and_passes_the_laws(group, name):
    extra = NEEDS.get((group, name), [])
    if (group, name) == ("reward", "none"):
        extra = ["algo=dpo"]
    if (group, name) == ("reward", "verifier"):
        extra = ["data=arithmetic"]
    if group == "data" and name in ("jsonl", "ultrafeedback", "hh_rlhf", "tldr"):
        extra = [*extra, "algo=dpo"]
    if (group, name) == ("data", "arithmetic"):
        extra = ["reward=verifier"]
    assert composed(f"{group}={name}", *extra)


def test_the_data_chooses_the_reward_unless_the_user_does():
    assert composed().reward.formula == "learned"
    assert composed("data=arithmetic").reward.formula == "verifier"
    assert composed("data=arithmetic", "reward=learned").reward.formula == "learned"
    assert composed("data=arithmetic").sampling.max_new_tokens == 32
    assert composed("data=gsm8k").reward.formula == "verifier"
    assert composed("algo=dpo", "data=tldr").reward.formula == "none"
    assert composed("data=tldr", "reward=learned").reward.formula == "learned"


# What an algorithm sets otherwise than grpo does, nothing else: no rate, no size, no setting of memory.
CRITIC_FREE = {"prompts_per_step", "group_size", "advantage", "whiten", "kl", "ratio", "aggregate", "minibatches"}
FROM_GRPO = {
    "grpo": set(),
    "rloo": {"advantage", "kl", "ratio"},
    "dr_grpo": {"advantage", "kl", "aggregate"},
    "gspo": {"kl", "ratio", "minibatches"},
    "dapo": {"max_draws", "kl", "ratio", "aggregate", "truncation", "minibatches"},
    "reinforce_pp": CRITIC_FREE,
    "ppo": CRITIC_FREE | {"gae", "critic", "scale"},
}


def on_policy_files() -> dict[str, dict]:
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (CONF / "algo").glob("*.yaml")}
    return {name: settings for name, settings in files.items() if settings.get("kind") == "on_policy"}


def different(one: dict, other: dict) -> set[str]:
    return {key for key in one if one[key] != other[key]}


def test_every_on_policy_file_has_the_same_keys_in_the_same_order():
    files = on_policy_files()
    assert files.keys() == FROM_GRPO.keys()
    for name, settings in files.items():
        assert list(settings) == list(files["grpo"]), name
        for key, part in files["grpo"].items():
            if isinstance(part, dict):
                assert list(settings[key]) == list(part), f"{name}: {key}"


@pytest.mark.parametrize("name", FROM_GRPO)
def test_the_difference_between_two_algorithms_is_the_difference_between_their_files(name):
    grpo, ours = plain(composed("algo=grpo"))["algo"], plain(composed(f"algo={name}"))["algo"]
    assert different(grpo, ours) == FROM_GRPO[name] | ({"name"} if name != "grpo" else set())


def test_two_files_differ_in_nothing_that_neither_changes_from_grpo():
    files = on_policy_files()
    for one, other in combinations(files, 2):
        assert different(files[one], files[other]) <= FROM_GRPO[one] | FROM_GRPO[other] | {"name"}, f"{one}, {other}"


def test_every_on_policy_algorithm_sees_as_many_completions_in_a_step():
    batches = {f["prompts_per_step"] * f["group_size"] for f in on_policy_files().values()}
    assert batches == {32}


def test_where_and_how_a_run_is_carried_out_does_not_change_what_it_is():
    here, there = (plain(composed(*overrides)) for overrides in (
        ["run_dir=a", "runs_root=x"],
        ["run_dir=b", "resume=true", "checkpoint.every=3", "checkpoint.keep=1", "reward_seconds=1"],
    ))  # fmt: skip
    assert config_hash(here) == config_hash(there)
    for other in ("seed=1", "guard.nonfinite=skip"):
        assert config_hash(here) != config_hash(plain(composed(other)))


def test_which_servers_sample_does_not_change_what_a_run_is_but_that_servers_do():
    local, own, named, strict = (config_hash(plain(composed(*overrides))) for overrides in (
        ["sampling=local"],
        ["sampling=vllm", VLLM, "sampling.vllm.arguments=['--max-model-len=512']", "sampling.vllm.retries=1"],
        ["sampling=vllm", "sampling.vllm.urls=[http://a:1,https://b]", "sampling.vllm.seconds=5"],
        ["sampling=vllm", VLLM, "sampling.vllm.gap=0.3"],
    ))  # fmt: skip
    assert local == config_hash(plain(composed()))
    assert own == named
    assert len({local, own, strict}) == 3


def test_a_setting_that_a_later_version_adds_and_leaves_null_does_not_change_what_a_run_is():
    now = plain(composed())
    later = now | {"new": None, "data": {**now["data"], "new": None}}
    assert config_hash(now) == config_hash(later) != config_hash(now | {"data": {**now["data"], "new": 0}})


def test_labels_without_noise_are_asked_for_as_the_refusal_says():
    assert composed("data.labels.sharpness=inf").data.labels.sharpness == math.inf


def test_every_field_of_every_schema_is_read_by_the_code():
    """A knob that nobody reads is a knob that does nothing."""
    code = "\n".join(
        file.read_text() for file in [*(ROOT / "align").rglob("*.py"), *(ROOT / "reward_models").rglob("*.py")]
        if file.name not in ("schema.py", "laws.py", "algo_laws.py", "on_policy_laws.py", "vllm_laws.py", "config.py")
    )  # fmt: skip
    schemas = [s for s in vars(schema).values() if isinstance(s, type) and is_dataclass(s)]
    assert len(schemas) >= 26
    unread = [f"{s.__name__}.{f.name}" for s in schemas for f in fields(s) if not re.search(rf"\.{f.name}\b", code)]
    assert unread == []


def test_every_number_in_conf_algo_is_read_from_a_file_that_says_where_it_comes_from():
    for file in (CONF / "algo").glob("*.yaml"):
        assert file.read_text().startswith("#"), f"{file.name} does not say what it is"
