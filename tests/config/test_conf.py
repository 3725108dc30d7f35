"""Every file under conf/ composes, and every schema field is read by somebody."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from align import schema
from align.config import check, config_hash, plain
from align.run import CONF

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"algo": 13, "model": 8, "data": 3, "reward": 4, "probe": 2, "sampling": 2}
NOT_CHOICES = {"lora"}  # included by others, never chosen
NEEDS = {("data", "jsonl"): ["data.path=pairs.jsonl"]}


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("run", overrides=list(overrides)))


def choices() -> list[tuple[str, str]]:
    return [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


def test_conf_has_the_files_it_should():
    found = {group: sum(1 for g, _ in choices() if g == group) for group in GROUPS}
    assert found == GROUPS | {"model": 8}


@pytest.mark.parametrize(("group", "name"), [c for c in choices() if c[1] not in NOT_CHOICES])
def test_every_choice_composes_and_passes_the_laws(group, name):
    extra = NEEDS.get((group, name), [])
    if (group, name) == ("reward", "none"):
        extra = ["algo=dpo"]
    if (group, name) == ("reward", "verifier"):
        extra = ["data=arithmetic"]
    if (group, name) == ("data", "jsonl"):
        extra = [*extra, "algo=dpo"]
    if (group, name) == ("data", "arithmetic"):
        extra = ["reward=verifier"]
    assert composed(f"{group}={name}", *extra)


def test_the_data_chooses_the_reward_unless_the_user_does():
    assert composed().reward.formula == "learned"
    assert composed("data=arithmetic").reward.formula == "verifier"
    assert composed("data=arithmetic", "reward=learned").reward.formula == "learned"
    assert composed("data=arithmetic").sampling.max_new_tokens == 32


def test_the_difference_between_two_algorithms_is_the_difference_between_their_files():
    grpo, rloo = plain(composed("algo=grpo"))["algo"], plain(composed("algo=rloo"))["algo"]
    assert {key for key in grpo if grpo[key] != rloo[key]} == {"name", "advantage", "kl", "ratio"}


def test_where_a_run_is_written_does_not_change_what_it_is():
    here, there = plain(composed("run_dir=a", "runs_root=x")), plain(composed("run_dir=b"))
    assert config_hash(here) == config_hash(there)
    assert config_hash(here) != config_hash(plain(composed("seed=1")))


def test_every_field_of_every_schema_is_read_by_the_code():
    """A knob that nobody reads is a knob that does nothing."""
    code = "\n".join(
        file.read_text() for file in [*(ROOT / "align").rglob("*.py"), *(ROOT / "reward_models").rglob("*.py")]
        if file.name not in ("schema.py", "laws.py", "algo_laws.py", "config.py")
    )  # fmt: skip
    schemas = [s for s in vars(schema).values() if isinstance(s, type) and is_dataclass(s)]
    assert len(schemas) >= 18
    unread = [f"{s.__name__}.{f.name}" for s in schemas for f in fields(s) if not re.search(rf"\.{f.name}\b", code)]
    assert unread == []


def test_every_number_in_conf_algo_is_read_from_a_file_that_says_where_it_comes_from():
    for file in (CONF / "algo").glob("*.yaml"):
        assert file.read_text().startswith("#"), f"{file.name} does not say what it is"
