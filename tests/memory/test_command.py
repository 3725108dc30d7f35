"""What a user types: answers, refusals that name key, value and fix, and nothing heavy loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from align.memory.__main__ import HELP, main
from align.memory.arguments import experiment_of
from align.memory.calcs import CALCS
from align.memory.dimensions import known
from tests.architecture.test_imports import ROOT
from tests.config.test_conf import CONF

ALGORITHMS = sorted(file.stem for file in (CONF / "algo").glob("*.yaml"))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_has_an_estimate(capsys, algo):
    assert main([f"algo={algo}", "model=qwen0.5b"]) == 0
    printed = capsys.readouterr().out
    assert "qwen0.5b (494,032,768 parameters)" in printed and "peak" in printed


def test_the_question_of_the_readme(capsys):
    assert main(["model=qwen7b", "algo=ppo", "gpus=8", "zero=3", "gb=80"]) == 0
    printed = capsys.readouterr().out
    assert "ppo, qwen7b (7,615,616,512 parameters), LoRA, on each of 8 GPUs, ZeRO-3" in printed
    assert "│ base weights  │  1.90 │" in printed  # 2 x 7.6e9 / 8
    assert "34.27 GB on each device" in printed  # 36 x 7.6e9 / 8
    assert "fits 80 GB" in printed


def test_what_does_not_fit_is_said_to(capsys):
    assert main(["model=qwen72b", "gpus=8", "zero=3", "gb=80"]) == 0  # the copy that is sampled from is not split
    assert "does not fit 80 GB" in capsys.readouterr().out


@pytest.mark.parametrize("calc", CALCS)
def test_every_calculator_answers_without_further_keys(capsys, calc):
    assert main([f"calc={calc}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 6


def test_a_list_is_comma_separated(capsys):
    assert main(["calc=grpo_signal", "p=0.2,0.5", "group=2,8"]) == 0
    printed = capsys.readouterr().out
    assert "68.0 %" in printed and "16.8 %" in printed and "50.0 %" in printed  # .2^2 + .8^2, .2^8 + .8^8, .5


def test_best_of_two_of_three_scores(capsys):
    assert main(["calc=bon", "n=2", "scores=10,40,70"]) == 0
    printed = capsys.readouterr().out
    assert "0.193" in printed and "60" in printed


REFUSED = [
    (["calc=zer"], ["calc=zer", "zero"]),
    (["calc=zero", "gpu=8"], ["gpu='8'", '"gpus"']),
    (["calc=zero", "gpus=0"], ["gpus=0", ">= 1"]),
    (["calc=zero", "gpus=two"], ["gpus=two", "whole number"]),
    (["calc=zero", "gpus=1.5"], ["gpus=1.5", "whole number"]),
    (["calc=zero", "params=nan"], ["params=nan", "number"]),
    (["calc=zero", "params=1e9", "model=qwen7b"], ["params", "qwen7b", "one of the two"]),
    (["calc=kv", "dtype=int8"], ["dtype=int8", "bfloat16"]),
    (["calc=kv", "model=gpt5"], ["model=gpt5", "llama2-7b"]),
    (["calc=lora", "targets=q_prj"], ["model.lora.targets=q_prj", "q_proj"]),
    (["calc=grpo_signal", "p=1.5"], ["p=1.5", "<= 1"]),
    (["calc=grpo_signal", "group=1"], ["group=1", ">= 2"]),
    (["calc=gae", "lam=2"], ["lam=2", "<= 1"]),
    (["calc=bon", "n=4", "scores=1,2"], ["n=4", "2 scores"]),
    (["calc=power", "sd=0"], ["sd=0", "> 0"]),
    (["calc=bt", "flips=0.6"], ["flips=0.6", "<= 0.5"]),
    (["calc=activations", "rank=-1"], ["rank=-1", "0 is full"]),
    (["--calc=zero"], ["--calc=zero", "key=value"]),
    (["zero=3"], ["zero=3", "gpus=0", "gpus=2"]),
    (["gpus=8", "zero=4"], ["zero=4", "0, 1, 2 or 3"]),
    (["gpus=-1"], ["gpus=-1", ">= 0"]),
    (["gpus=2", "gpus=4"], ["gpus", "twice"]),
    (["gb=0"], ["gb=0", "> 0"]),
    (["prompt_tokens=0"], ["prompt_tokens=0", ">= 1"]),
    (["completion_tokens=0"], ["completion_tokens=0", ">= 1"]),
    (["algo=grop"], ["grop"]),
    (["gpu=8"], ["gpu='8'", '"gpus"']),
    (["algo.micro_batch_token=8"], ["algo.micro_batch_token='8'", '"micro_batch_tokens"']),
    (["algo.micro_batch_tokens=0"], ["algo.micro_batch_tokens=0"]),
    (["dtype=float16"], ["dtype=float16", "bfloat16"]),
    (["device=cuda"], ["device=cuda", "gpus=1"]),
    (["model.path=there"], ["model.path=there", "model="]),
    (["model=mistral-7b"], ["model=mistral-7b", "mistral", "calc="]),
    (["model.lora.dropout=0.1"], ["model.lora", "dropout=0"]),
    (["model.lora.targets=[q_prj]"], ["model.lora.targets=q_prj", "q_proj"]),
    (["algo=ppo", "model.lora=none"], ["model.lora"]),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_is_wrong_is_refused_with_key_value_and_fix(capsys, arguments, words):
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ")
    assert all(word in said.err for word in words), said.err


def test_help_names_every_calculator_and_model(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP
    assert all(f"calc={name} " in HELP for name in CALCS)
    assert all(name in HELP for name in known() if name not in ("mistral-7b", "opt-13b"))


def test_a_model_without_a_config_file_takes_loras_settings():
    experiment, shape, _ = experiment_of({"model": "qwen7b", "model.lora.rank": "8"})
    assert (experiment.model.lora.rank, shape.name) == (8, "qwen7b")


def test_no_torch_is_imported():
    code = ("import sys; from align.memory.__main__ import main; main(['algo=ppo', 'model=qwen7b']); "
            "main(['calc=bt']); print('torch' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr
