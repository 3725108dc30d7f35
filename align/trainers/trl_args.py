"""From our settings to the keyword arguments of TRL's config objects. Pure: nothing here imports torch or TRL.

Two rules hold for every trainer. What TRL leaves to a default that would change the numbers is set here by name (its
defaults are bfloat16 autocast, gradient checkpointing and a maximum length of 1024 tokens). And nothing is written,
drawn or reported by TRL: rows of metrics, progress and checkpoints are ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.refusals import ConfigError

if TYPE_CHECKING:
    from align.schema import Experiment, Optimizer

# TRL's name of each loss that its DPOTrainer serves; LD-DPO is `sigmoid` with `ld_alpha`. The losses that we supply
# (align/trainers/trl_losses.py) run on the same trainer and never reach its own.
DPO_LOSS_TYPES = {
    "dpo": "sigmoid",
    "ldpo": "sigmoid",
    "ipo": "ipo",
    "cdpo": "sigmoid",
    "rdpo": "sigmoid",
    "simpo": "sigmoid",
}


def dpo_args(experiment: Experiment, folder: Path, processes: int = 1) -> dict[str, Any]:
    """DPOConfig of a run whose loss is one of DPO_LOSS_TYPES."""
    algo = experiment.algo
    return {
        **_common(experiment, folder),
        **_batches(algo.pairs_per_step, algo.micro_batch, processes, "algo.pairs_per_step"),
        "loss_type": [DPO_LOSS_TYPES[algo.loss]],
        "beta": algo.beta,
        "ld_alpha": algo.ld_alpha,
        "disable_dropout": True,
    }


def kto_args(experiment: Experiment, folder: Path, processes: int = 1) -> dict[str, Any]:
    """KTOConfig. A pair is two examples, so that a micro-batch holds as many sequences as DPO's."""
    algo = experiment.algo
    batches = _batches(algo.pairs_per_step, algo.micro_batch, processes, "algo.pairs_per_step")
    return {
        **_common(experiment, folder),
        **batches,
        "per_device_train_batch_size": 2 * batches["per_device_train_batch_size"],
        "loss_type": "kto",
        "beta": algo.beta,
        "desirable_weight": algo.desirable_weight,
        "undesirable_weight": algo.undesirable_weight,
        "disable_dropout": True,
    }


def orpo_args(experiment: Experiment, folder: Path, processes: int = 1) -> dict[str, Any]:
    """ORPOConfig."""
    algo = experiment.algo
    return {
        **_common(experiment, folder),
        **_batches(algo.pairs_per_step, algo.micro_batch, processes, "algo.pairs_per_step"),
        "beta": algo.beta,
        "disable_dropout": True,
        "remove_unused_columns": False,  # its collator reads columns that are no argument of the model's forward
    }


def sft_args(experiment: Experiment, folder: Path, processes: int = 1) -> dict[str, Any]:
    """SFTConfig, on rows that already carry their labels."""
    algo = experiment.algo
    return {
        **_common(experiment, folder),
        **_batches(algo.examples_per_step, algo.micro_batch, processes, "algo.examples_per_step"),
        "loss_type": "nll",
        "packing": False,
        "padding_free": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def reward_args(experiment: Experiment, folder: Path, processes: int = 1) -> dict[str, Any]:
    """RewardConfig."""
    algo = experiment.algo
    return {
        **_common(experiment, folder),
        **_batches(algo.pairs_per_step, algo.micro_batch, processes, "algo.pairs_per_step"),
        "center_rewards_coefficient": algo.center,
        # TRL would set the adapter's dropout to 0 along with the model's: not when it was asked for.
        "disable_dropout": experiment.model.lora is None or experiment.model.lora.dropout == 0,
    }


def _common(experiment: Experiment, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": experiment.steps,
        "max_length": None,  # nothing is cut off here: the data layer filters by length and says what it dropped
        **_optimizer(experiment.algo.optimizer),
        # One unwrapped forward for training and probe: autocast would move logprobs by 3e-3 nats per token.
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": experiment.device == "cpu",
        "use_cache": True,  # the trainer writes this into the model's config, and the probe generates with that model
        # The order of training is laid out beforehand (align/trainers/trl_data.py) and read front to back.
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,  # every trainable weight takes part in every forward
        "seed": experiment.seed,
        "data_seed": experiment.seed,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # by default a NaN loss is replaced by the mean of the earlier ones
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def _optimizer(optimizer: Optimizer) -> dict[str, Any]:
    return {
        "optim": "adamw_torch",
        "learning_rate": optimizer.lr,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "lr_scheduler_type": _scheduler(optimizer),
        "warmup_steps": optimizer.warmup_steps,
    }


def _scheduler(optimizer: Optimizer) -> str:
    """transformers' `constant` has no warm-up and ignores `warmup_steps` without a word."""
    if optimizer.schedule == "constant" and optimizer.warmup_steps:
        return "constant_with_warmup"
    return optimizer.schedule


def _batches(per_step: int, micro_batch: int, processes: int, key: str) -> dict[str, int]:
    """A step is `accumulation` micro-batches on each process. Raises ConfigError when that does not come out even."""
    accumulation, rest = divmod(per_step, micro_batch * processes)
    if rest or not accumulation:
        raise ConfigError(
            f"{key}={per_step}: must be a multiple of algo.micro_batch={micro_batch} x {processes} processes, "
            "so that every optimizer step sees the same amount"
        )
    return {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
