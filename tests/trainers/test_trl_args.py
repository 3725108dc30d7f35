"""What TRL is told: every setting of ours arrives under TRL's name, and no default of TRL's changes the numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.refusals import ConfigError
from align.trainers import trl_args
from tests.trainers import tiny

FOLDER = Path("run")
ALL = {
    "dpo": (trl_args.dpo_args, tiny.preference("dpo")),
    "kto": (trl_args.kto_args, tiny.preference("kto")),
    "orpo": (trl_args.orpo_args, tiny.preference("orpo")),
    "sft": (trl_args.sft_args, tiny.sft()),
    "reward": (trl_args.reward_args, tiny.reward()),
}


def settings(**optimizer: Any) -> dict[str, Any]:
    return trl_args.dpo_args(tiny.preference("dpo", optimizer=tiny.optimizer(**optimizer)), FOLDER)


@pytest.mark.parametrize("name", ALL)
def test_every_trainer_runs_unwrapped_uncut_and_writes_nothing(name):
    make, experiment = ALL[name]
    args = make(experiment, FOLDER)
    expected = {
        "bf16": False, "fp16": False, "gradient_checkpointing": False, "max_length": None, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "logging_nan_inf_filter": False,
        "use_cpu": True, "use_cache": True, "train_sampling_strategy": "sequential", "output_dir": "run",
        "max_steps": 2, "seed": 0, "data_seed": 0,
    }  # fmt: skip
    assert {key: args[key] for key in expected} == expected


@pytest.mark.parametrize("name", ALL)
def test_trl_accepts_every_argument_and_keeps_its_value(name, tmp_path):
    from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig
    from trl.experimental.orpo import ORPOConfig

    make, experiment = ALL[name]
    args = make(experiment, tmp_path)
    config = {"dpo": DPOConfig, "kto": KTOConfig, "orpo": ORPOConfig, "sft": SFTConfig, "reward": RewardConfig}[name]
    taken = config(**args)
    renamed = ("report_to", "log_level")  # kept as a list, and as a number of the logging module
    assert {key: getattr(taken, key) for key in args if key not in renamed} == {
        key: value for key, value in args.items() if key not in renamed
    }


def test_the_optimizer_arrives_whole():
    args = settings(lr=3e-5, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.1, max_grad_norm=0.5)
    assert args["optim"] == "adamw_torch"
    assert (args["learning_rate"], args["adam_epsilon"]) == (3e-5, 1e-6)
    assert (args["adam_beta1"], args["adam_beta2"]) == (0.8, 0.95)
    assert (args["weight_decay"], args["max_grad_norm"]) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "scheduler"),
    [("constant", 0, "constant"), ("constant", 3, "constant_with_warmup"), ("linear", 3, "linear"),
     ("cosine", 0, "cosine")],
)  # fmt: skip
def test_a_constant_rate_with_warm_up_gets_its_warm_up(schedule, warmup_steps, scheduler):
    args = settings(schedule=schedule, warmup_steps=warmup_steps)
    assert (args["lr_scheduler_type"], args["warmup_steps"]) == (scheduler, warmup_steps)


def batches(processes: int, pairs_per_step: int, micro_batch: int, make=trl_args.dpo_args, loss="dpo"):
    args = make(tiny.preference(loss, pairs_per_step, micro_batch), FOLDER, processes)
    return args["per_device_train_batch_size"], args["gradient_accumulation_steps"]


def test_a_step_is_the_same_pairs_however_it_is_cut():  # micro-batch x accumulation x processes = 16
    assert batches(processes=1, pairs_per_step=16, micro_batch=4) == (4, 4)
    assert batches(processes=2, pairs_per_step=16, micro_batch=4) == (4, 2)
    assert batches(processes=4, pairs_per_step=16, micro_batch=4) == (4, 1)


def test_a_pair_is_two_examples_to_kto():
    assert batches(processes=1, pairs_per_step=16, micro_batch=4, make=trl_args.kto_args, loss="kto") == (8, 4)


@pytest.mark.parametrize("processes", [3, 8])
def test_a_step_that_does_not_divide_over_the_processes_is_refused_with_key_value_and_fix(processes):
    with pytest.raises(ConfigError, match=rf"algo.pairs_per_step=16: must be a multiple of .*=4 x {processes} proc"):
        batches(processes, pairs_per_step=16, micro_batch=4)


@pytest.mark.parametrize(("loss", "loss_type"), [("dpo", "sigmoid"), ("ldpo", "sigmoid"), ("ipo", "ipo")])
def test_each_loss_that_trl_serves_has_its_name_and_knobs(loss, loss_type):
    args = trl_args.dpo_args(tiny.preference(loss), FOLDER)
    assert args["loss_type"] == [loss_type]
    assert args["beta"] == tiny.KNOBS[loss]["beta"]
    assert args["ld_alpha"] == tiny.KNOBS[loss].get("ld_alpha")


def test_kto_and_reward_get_their_own_knobs():
    kto = trl_args.kto_args(tiny.preference("kto"), FOLDER)
    assert (kto["desirable_weight"], kto["undesirable_weight"]) == (1.0, 1.5)
    assert trl_args.reward_args(tiny.reward(center=0.01), FOLDER)["center_rewards_coefficient"] == 0.01


def test_dropout_is_off_unless_a_reward_model_asked_for_it():
    assert trl_args.dpo_args(tiny.preference("dpo"), FOLDER)["disable_dropout"] is True
    experiment = tiny.reward()
    assert trl_args.reward_args(experiment, FOLDER)["disable_dropout"] is True
    experiment.model = SimpleNamespace(lora=SimpleNamespace(dropout=0.1))
    assert trl_args.reward_args(experiment, FOLDER)["disable_dropout"] is False


def test_the_arguments_are_made_without_importing_torch_or_trl():
    code = "import sys; import align.trainers.trl_args; print([m for m in ('torch', 'trl') if m in sys.modules])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
