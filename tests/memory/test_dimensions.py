"""Parameters are those of the model that transformers builds from the same dimensions."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from align.memory.dimensions import known, load
from align.refusals import ConfigError
from tests.config.test_conf import CONF, NOT_CHOICES

EXACT = {"smollm2-135m": 134_515_008, "qwen0.5b": 494_032_768, "llama2-7b": 6_738_415_616}
BILLIONS = {"qwen1.5b": 1.54, "qwen7b": 7.61, "qwen72b": 72.7}  # as their model cards state them


def built(name: str):
    """The model without its weights."""
    config = dict(known()[name])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


@pytest.mark.parametrize("name", known())
def test_parameters_are_those_of_the_model(name):
    assert load(name).parameters == sum(p.numel() for p in built(name).parameters())


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_those_published(name):
    assert load(name).parameters == EXACT[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_are_those_of_the_model_card(name):
    assert load(name).parameters / 1e9 == pytest.approx(BILLIONS[name], rel=0.003)


@pytest.mark.parametrize("name", [name for name in known() if "70b" not in name and "72b" not in name])
def test_adapters_are_as_large_as_pefts(name):
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = get_peft_model(built(name), config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert load(name).adapter(16) == trained


def test_every_model_that_can_be_run_can_be_estimated():
    assert {file.stem for file in (CONF / "model").glob("*.yaml")} - NOT_CHOICES <= known().keys()


def test_a_folder_with_a_config_serves_as_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(built("tiny").config.to_dict()))
    assert load(str(tmp_path)).parameters == load("tiny").parameters


@pytest.mark.parametrize(("name", "words"), [
    ("qwen7", ["model=qwen7", "qwen7b"]),
    ("no/folder", ["model=no/folder", "config.json"]),
])  # fmt: skip
def test_a_model_that_is_not_known_is_refused(name, words):
    with pytest.raises(ConfigError) as refused:
        load(name)
    assert all(word in str(refused.value) for word in words)


def test_a_config_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type=gpt2"):
        load(str(tmp_path))
