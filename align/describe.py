"""What `meta.json` says of a run besides its config: versions, machine, fingerprints."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import align
from align.config import config_hash
from align.data import Data
from align.models import Policy

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "hydra-core", "datasets")


def describe(
    settings: dict[str, Any],
    title: str,
    device: torch.device,
    dtype: torch.dtype,
    policy: Policy,
    data: Data,
    processes: int,
) -> dict[str, Any]:
    return {
        "name": title,
        "config_hash": config_hash(settings),
        "start_fingerprint": policy.fingerprint,
        "data_fingerprint": data.fingerprint,
        "data_notes": list(data.notes),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "align": align.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The commit of the checkout that runs, with a plus when it has changes; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():  # git would take that of a folder around site-packages
        return None
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
