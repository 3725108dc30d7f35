"""What `accelerate launch --config_file conf/accelerate/NAME.yaml` puts into the environment of a run."""

from __future__ import annotations

import argparse
import os

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from tests.end_to_end.helpers import ROOT

FOLDER = ROOT / "conf" / "accelerate"
NAMES = ("cpu", "gpu", "ddp", "fsdp2", "zero1", "zero2", "zero3")


def arguments(name: str, *flags: str) -> argparse.Namespace:
    """Parsed and validated by Accelerate's own code."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "-m", "align.run"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def environment(name: str, *flags: str) -> dict[str, str]:
    """What the launcher adds; RANK and its like, which torchrun gives each process, left out."""
    args = arguments(name, *flags)
    if args.use_deepspeed and not args.cpu:
        args.deepspeed_fields_from_accelerate_config = ""
        env = prepare_deepspeed_cmd_env(args)[1]
    elif (args.use_fsdp or args.multi_gpu) and not args.cpu:
        env = prepare_multi_gpu_env(args)
    else:
        env = prepare_simple_launcher_cmd_env(args)[1]
    return {key: value for key, value in env.items() if os.environ.get(key) != value and key != "PYTHONPATH"}
