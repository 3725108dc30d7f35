"""What `meta.json` says of a run besides its config: versions, machine, fingerprints."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import align
from align.config import config_hash
from align.data import Data
from align.models import Policy
from align.reward_model import RewardModel

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "hydra-core", "datasets")
ROUNDING = ("device", "threads", "align", "commit", "python")  # of meta.json, what numbers may depend on besides those


def describe(
    settings: dict[str, Any],
    title: str,
    device: torch.device,
    dtype: torch.dtype,
    policy: Policy,
    data: Data,
    learned: RewardModel | None,
    processes: int,
) -> dict[str, Any]:
    return {
        "name": title,
        "config_hash": config_hash(settings),
        "start_fingerprint": policy.fingerprint,
        "data_fingerprint": data.fingerprint,
        "reward_fingerprint": learned.fingerprint if learned else None,
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


def elsewhere(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What to say when a run goes on with other software, or on another machine, than it began with."""
    was, has = _rounding(before), _rounding(now)
    changed = [
        f"{key} {has[key]} (began with {was[key]})"
        for key in has
        if None not in (was.get(key), has[key]) and was[key] != has[key]
    ]
    if not changed:
        return ""
    return f"goes on with {', '.join(changed)}: numbers may round differently from here"


def _rounding(meta: Mapping[str, Any]) -> dict[str, Any]:
    versions = meta.get("versions")
    return {key: meta[key] for key in ROUNDING if key in meta} | (versions if isinstance(versions, dict) else {})


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
