"""The command line: `key=value`, checked and typed, each mistake named with its fix."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from align.compose import CONF, composed
from align.config import check
from align.memory.dimensions import Dimensions, load
from align.memory.place import Place, bytes_of
from align.refusals import ConfigError, refuse_unknown, shown
from align.schema import Experiment

GROUPS = ("algo", "model", "data", "reward", "probe", "sampling")
PLACE = {"gpus": 0, "zero": 0, "prompt_tokens": 64, "completion_tokens": None, "gb": None}
KINDS = {int: "a whole number", float: "a number", str: "a name"}


def split(arguments: Sequence[str]) -> dict[str, str]:
    """Raises ConfigError for what is not key=value, and for a key given twice."""
    found: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key or argument.startswith("-"):
            raise ConfigError(f"{shown(argument)}: not understood; arguments are key=value (see --help)")
        if key in found:
            raise ConfigError(f"{shown(argument)}: {shown(key)} is given twice; keep one")
        found[key] = value
    return found


def typed(key: str, value: str, kind: Any) -> Any:
    """`value` as int, float, str, one of them or None, or a comma-separated list of one. Raises ConfigError."""
    if typing.get_origin(kind) is tuple:
        return tuple(typed(key, part, typing.get_args(kind)[0]) for part in value.split(","))
    options = [option for option in typing.get_args(kind) or (kind,) if option is not type(None)]
    if value in ("null", "none") and options != [kind]:
        return None
    (wanted,) = options
    try:
        found = wanted(float(value)) if wanted is int and float(value).is_integer() else wanted(value)
    except ValueError:
        found = math.nan
    if isinstance(found, float) and not math.isfinite(found):
        raise ConfigError(f"{key}={shown(value)}: must be {KINDS[wanted]}")
    return found


def bound(function: Callable[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for a function, typed as it says. Raises ConfigError."""
    hints = typing.get_type_hints(function)
    names = list(inspect.signature(function).parameters)
    refuse_unknown(given, names, "")
    return {key: typed(key, value, hints[key]) for key, value in given.items()}


def experiment_of(given: Mapping[str, str]) -> tuple[Experiment, Dimensions, Place]:
    """The run that is asked about, its model and where it is to run. Raises ConfigError."""
    given = dict(given)
    own = {key: given.pop(key) for key in PLACE if key in given}
    name = given.pop("model", "smollm2-135m")
    shape = load(name)
    for key, fix in (("device", "gpus=0 is a CPU, gpus=1 a GPU"), ("model.path", "model= takes a folder too")):
        if key in given:
            raise ConfigError(f"{key}={shown(given[key])}: not asked for here; {fix}")
    refuse_unknown({key: v for key, v in given.items() if "." not in key},
                   [*PLACE, "calc", *(field.name for field in fields(Experiment))], "")  # fmt: skip
    # What a model's file says beside its name is about LoRA, and the same for all.
    file = name if (CONF / "model" / f"{name}.yaml").is_file() else "smollm2-135m"
    _refuse_unknown_dotted(given)
    experiment = check(composed([f"model={file}", *(f"{key}={value}" for key, value in given.items())]))
    lora = experiment.model.lora
    if lora and (lora.dropout or lora.dora):
        raise ConfigError("model.lora: with dropout or DoRA a layer takes PEFT's own path, whose memory is not counted "
                          "here; set model.lora.dropout=0 model.lora.dora=false")  # fmt: skip
    place = Place(
        gpus=typed("gpus", own.get("gpus", "0"), int),
        zero=typed("zero", own.get("zero", "0"), int),
        number=bytes_of(experiment.dtype),
        prompt=typed("prompt_tokens", own.get("prompt_tokens", str(PLACE["prompt_tokens"])), int),
        completion=typed("completion_tokens", own.get("completion_tokens", "null"), int | None),
        memory=typed("gb", own.get("gb", "null"), float | None),
    )
    place.check()
    return experiment, shape, place


def _refuse_unknown_dotted(given: Mapping[str, str]) -> None:
    """Hydra would advise `+key=value` for a key that does not exist."""
    groups = [f"{key}={value}" for key, value in given.items() if key in GROUPS]
    settings: Any = OmegaConf.to_container(composed(groups), resolve=False)
    for key, value in given.items():
        *path, last = key.split(".")
        node = settings
        for part in path:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if path and isinstance(node, dict):
            refuse_unknown({last: value}, list(node), ".".join(path))
