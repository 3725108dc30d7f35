"""What `accelerate launch` was asked for, and whether the run got it (docs/scale.md).

Accelerate does something else without a word: on a CPU it trains with DDP where FSDP was asked for and leaves DeepSpeed
out, and `accelerate launch --cpu` starts one process of however many. The environment that it sets says what was
asked (accelerate/utils/launch.py, version 1.15).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from align.refusals import need
from align.schema import Experiment

KEY = "distributed_type (accelerate launch)"
ALONE, DDP = "one process", "ddp"
WHOLE = (
    "cuts the model's parameters up, and the probe, the sampler and the reference, whose base is the policy's, need "
    "them whole; "
)
STEPS = (
    "leaves a piece of the optimizer on each process, of which a checkpoint would keep one, and DeepSpeed steps within "
    "each backward pass, where the on-policy loop accumulates micro-batches; "
)
FIX = (
    "use conf/accelerate/ddp.yaml: with model.lora gradients and optimizer, which it does not cut up, are small, and "
    "model.quant=nf4 is for a base that is not"
)

ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
# Accelerate obeys these over what it is told, and says nothing.
TAKEN_FROM_THE_ENVIRONMENT = {
    ACCUMULATION: "would divide gradients that the loop has divided already; unset it, algo.micro_batch does that",
    "ACCELERATE_DYNAMO_BACKEND": "would compile the model for training and not for the probe; leave it out",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "cuts the model or its inputs up, which no run here can have; leave it out",
}


def asked(env: Mapping[str, str]) -> str:
    """-> one process, ddp, fsdp1, fsdp2, zero0 ... zero3 or megatron"""
    if _on(env, "ACCELERATE_USE_DEEPSPEED"):
        return f"zero{env.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if _on(env, "ACCELERATE_USE_FSDP"):
        return f"fsdp{env.get('FSDP_VERSION', '1')}"
    if _on(env, "ACCELERATE_USE_MEGATRON_LM"):
        return "megatron"
    return DDP if _world(env) > 1 else ALONE


def obtained(accelerator: Accelerator) -> str:
    """In the words of `asked`."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if kind == DistributedType.FSDP:
        return f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    if kind == DistributedType.MEGATRON_LM:
        return "megatron"
    return DDP if accelerator.num_processes > 1 else ALONE


def prepare(env: Mapping[str, str] = os.environ) -> None:
    """Refuses, before Accelerate is asked for anything, what it would stop at with a traceback or pass over."""
    if asked(env).startswith("zero"):
        need(
            importlib.util.find_spec("deepspeed") is not None, KEY, asked(env), "needs DeepSpeed: pip install deepspeed"
        )
    for name, fix in TAKEN_FROM_THE_ENVIRONMENT.items():
        value = env.get(name, "no")
        need(value.lower() in ("no", "false", "1" if name == ACCUMULATION else "no"), name, value, fix)
    need(
        not ("ACCELERATE_USE_CPU" in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env),
        "num_processes (accelerate launch)",
        "several",
        "this process was started alone, as `accelerate launch` does with --cpu, use_cpu or MULTI_CPU; use "
        "--config_file conf/accelerate/ddp.yaml with device=cpu (or unset MASTER_ADDR, if you want one process)",
    )


def verify(experiment: Experiment, accelerator: Accelerator, env: Mapping[str, str] = os.environ) -> None:
    """Refuses a run that would not get the strategy it asked for, or could not be right with it."""
    device: torch.device = accelerator.device
    want, got = asked(env), obtained(accelerator)
    need(want == got, KEY, want, f"Accelerate would train with {got} on this {device.type} and not say so; use "
         f"conf/accelerate/{'ddp' if got == DDP else 'cpu'}.yaml, which is that")  # fmt: skip
    need(_world(env) == accelerator.num_processes, "num_processes (accelerate launch)", _world(env),
         f"Accelerate found {accelerator.num_processes}")  # fmt: skip
    if "ACCELERATE_USE_CPU" in env:  # of cpu.yaml or gpu.yaml
        cpu = _on(env, "ACCELERATE_USE_CPU")
        need(not cpu or device.type == "cpu", "device", experiment.device,
             f"would compute on {device.type}, and accelerate's use_cpu is true; add device=cpu")  # fmt: skip
        need(cpu or device.type != "cpu" or experiment.device == "cpu", "device", experiment.device,
             "torch finds no GPU, and accelerate's use_cpu is false; add device=cpu, or use "
             "conf/accelerate/cpu.yaml")  # fmt: skip
    precision = env.get("ACCELERATE_MIXED_PRECISION", "no")
    need(precision == "no", "mixed_precision (accelerate launch)", precision,
         "set it to no: models are loaded in `dtype`, and autocast would make training and probe disagree")  # fmt: skip
    need(got in (ALONE, DDP), KEY, got, (STEPS if got in ("zero1", "zero2") else WHOLE) + FIX)


def _on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "false").lower() in ("true", "1")


def _world(env: Mapping[str, str]) -> int:
    return int(env.get("WORLD_SIZE", "1"))
