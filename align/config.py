"""From Hydra's composed config to the typed `Experiment` that everything else reads: `check(cfg)`.

It imports neither torch nor any trainer, so a mistake is reported before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env

from align import laws
from align.private import SECRET
from align.refusals import ConfigError, first_line, refuse_unknown
from align.runs import CIRCUMSTANCES
from align.schema import (
    AnnotatorData,
    ArithmeticData,
    BestOfN,
    Experiment,
    HubData,
    JsonlData,
    OnPolicy,
    Preference,
    RewardTraining,
    Sft,
    Tempered,
)

__all__ = ["ConfigError", "Experiment", "check", "config_hash", "plain"]

# A group whose fields depend on its `kind`: the kind picks the schema, once, here.
KINDS: dict[str, dict[str, type]] = {
    "algo": {
        "on_policy": OnPolicy,
        "preference": Preference,
        "sft": Sft,
        "reward": RewardTraining,
        "best_of_n": BestOfN,
        "tempered": Tempered,
    },
    "data": {"annotator": AnnotatorData, "arithmetic": ArithmeticData, "jsonl": JsonlData, "hub": HubData},
}


@contextmanager
def _without_secrets() -> Iterator[None]:
    """A config is written down and may come from somebody else: ${oc.env:HF_TOKEN} is refused."""

    def guarded(name: str, *default: Any) -> Any:
        if SECRET.search(name):
            raise ValueError(f"${{oc.env:{name}}} would be written into the run directory")
        return env(name, *default)

    OmegaConf.register_new_resolver("oc.env", guarded, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def check(cfg: DictConfig) -> Experiment:
    """Composed config -> typed Experiment. Raises ConfigError naming key, value and fix.

    The composed config is merged onto fresh schemas, so a key that Hydra let through (`+typo=1`) is refused here.
    """
    try:
        with _without_secrets():
            container = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config cannot be resolved: {first_line(error)}") from None
    assert isinstance(container, dict)
    raw = {str(key): value for key, value in container.items()}
    refuse_unknown(raw, [field.name for field in fields(Experiment)], "")
    for group, part in (
        ("model", "lora"),
        ("algo", "critic"),
        ("algo", "gae"),
        ("sampling", "vllm"),
        ("sampling", "importance"),
    ):  # `model.lora=none` on the command line
        section = raw.get(group)
        if isinstance(section, dict) and section.get(part) == "none":
            section[part] = None
    for group, schemas in KINDS.items():
        raw[group] = _typed(_kind(raw.get(group), group, schemas), raw[group], group)
    experiment = _typed(Experiment, raw, "")
    assert isinstance(experiment, Experiment)
    laws.enforce(experiment)
    return experiment


def _kind(raw: Any, group: str, schemas: dict[str, type]) -> type:
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{group}={raw!r}: expected a group of settings; pick a file of conf/{group}, e.g. {group}=NAME"
        )
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in schemas:
        raise ConfigError(
            f"{group}.kind={kind!r}: must be one of {', '.join(schemas)}; it belongs to the file of "
            f"conf/{group}, pick another with {group}=NAME"
        )
    return schemas[kind]


def _typed(schema: type, raw: dict[str, Any], prefix: str) -> Any:
    """Merge onto the schema: unknown keys, wrong types and missing values are refused by name."""
    _walk_unknown(schema, raw, prefix)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), raw)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise ConfigError(f"{_join(prefix, sorted(missing)[0])} has no value; give it one on the command line")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = _join(prefix, str(error.full_key or ""))
        raise ConfigError(f"{key}: {first_line(error)}") from None


def _walk_unknown(schema: type, raw: Mapping[str, Any], prefix: str) -> None:
    known = {field.name: field for field in fields(schema)}
    refuse_unknown(raw, list(known), prefix)
    hints = _nested(schema)
    for key, value in raw.items():
        if key in hints and isinstance(value, dict):
            _walk_unknown(hints[key], value, _join(prefix, key))


def _nested(schema: type) -> dict[str, type]:
    """Fields of a schema that are schemas themselves, `X | None` included."""
    found = {}
    for name, hint in typing.get_type_hints(schema).items():
        for option in (hint, *typing.get_args(hint)):
            if is_dataclass(option) and isinstance(option, type):
                found[name] = option
    return found


def plain(experiment: Experiment) -> dict[str, Any]:
    """The experiment as nested dicts, ready for YAML or JSON."""
    return asdict(experiment)  # what OmegaConf makes of it, sixty times as fast: a study of 40 runs asks 200 times


def config_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of what the experiment is, without where it is written. Equal hash, equal experiment.

    A setting that is null is left out: runs older than the setting are found again.
    """
    return hashlib.sha256(json.dumps(_given(settings), sort_keys=True).encode()).hexdigest()


def _given(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _given(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in settings.items() if value is not None and f"{prefix}{key}" not in CIRCUMSTANCES
    }  # fmt: skip


def _join(prefix: str, key: str) -> str:
    return ".".join(part for part in (prefix, key) if part)
