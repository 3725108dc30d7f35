"""Values of a declared study: read, or refused with key, value and fix. All raise ConfigError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.refusals import ConfigError, need, one_of, refuse_unknown

UNITS = ("absolute", "base_mean", "base_within_prompt_sd")


def seeds_by_tier(raw: Any, tiers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """One list for every tier, or each tier's own."""
    if isinstance(raw, dict):
        keys(raw, tiers, (), "seeds")
    found = raw if isinstance(raw, dict) else dict.fromkeys(tiers, raw)
    return {tier: seed_list(found[tier]) for tier in tiers}


def beside(raw: Any, seeds: Mapping[str, Sequence[int]]) -> dict[str, int]:
    keys(mapping(raw, "beside"), list(seeds), (), "beside")
    for tier, many in raw.items():
        need(type(many) is int and 0 < many <= len(seeds[tier]), f"beside.{tier}", many,
             f"is how many of the {len(seeds[tier])} seeds controls and mitigations have")  # fmt: skip
    return dict(raw)


def screen(raw: Any, tiers: Sequence[str]) -> tuple[str, ...]:
    """Tiers that only screen the claim; one of the others must be able to decide it."""
    need(isinstance(raw, list) and len(raw) > 0 and all(raw.count(tier) == 1 for tier in raw), "screen", raw,
         "must be a list of tiers, each once; leave it out where every tier decides")  # fmt: skip
    for tier in raw:
        one_of(tier, tiers, "screen")
    need(len(raw) < len(tiers), "screen", raw, "leaves no tier that decides the claim; add one to tiers")
    return tuple(raw)


def seed_list(raw: Any) -> tuple[int, ...]:
    whole = isinstance(raw, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in raw)
    need(whole and len({*raw}) == len(raw) > 0, "seeds", raw, "must be a list of different whole numbers")
    return tuple(raw)


def margin_of(raw: Mapping[str, Any], where: str) -> tuple[float, str]:
    margin = number(raw["margin"], f"{where}.margin")
    need(margin > 0, f"{where}.margin", margin, "must be above 0: what would be too small to matter?")
    one_of(raw.get("of", "absolute"), UNITS, f"{where}.of")
    return margin, raw.get("of", "absolute")


def gates(raw: Mapping[str, Any], arms: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Arm -> key -> limits; without arms of its own a gate is every arm's."""
    found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in arms}
    for key, own in raw.items():
        limits = own if isinstance(own, dict) else dict.fromkeys(arms, own)
        for name, limit in limits.items():
            one_of(name, arms, f"gates.{key}")
            found[name][str(key)] = gate(limit, key)
    return found


def gate(limits: Any, key: str) -> tuple[float, float]:
    need(isinstance(limits, list) and len(limits) == 2, f"gates.{key}", limits, "must be [lowest, highest]")
    low, high = (number(limit, f"gates.{key}") for limit in limits)
    need(low < high, f"gates.{key}", limits, "the first must be below the second")
    return low, high


def overrides(raw: Any, where: str) -> tuple[str, ...]:
    need(isinstance(raw, list) and all(isinstance(item, str) and "=" in item for item in raw), where, raw,
         "must be a list of KEY=VALUE")  # fmt: skip
    for item in raw:
        key = item.partition("=")[0].lstrip("+~")
        need(key not in ("seed", "run_dir", "runs_root", "resume"), f"{where}.{key}", item, "is the study's to choose")
        # Hydra makes objects of what it finds under hydra.callbacks: a study of somebody else would run what it likes
        need(not key.startswith("hydra"), f"{where}.{key}", item, "is Hydra's; a study sets what align.run has")
    return tuple(raw)


def names(raw: Any, where: str) -> tuple[str, ...]:
    need(isinstance(raw, list) and all(isinstance(item, str) for item in raw), where, raw, "must be a list of keys")
    return tuple(raw)


def mapping(raw: Any, where: str) -> Mapping[str, Any]:
    need(isinstance(raw, dict), where, raw, "must be a mapping of keys")
    return raw


def number(raw: Any, where: str) -> float:
    need(isinstance(raw, int | float) and not isinstance(raw, bool), where, raw, "must be a number")
    try:
        return float(raw)
    except OverflowError:
        raise ConfigError(f"{where}: is a number of too many digits") from None


def keys(raw: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], where: str) -> None:
    refuse_unknown(raw, [*required, *optional], where)
    for key in required:
        if raw.get(key) is None:
            raise ConfigError(f"{where}.{key} is missing".removeprefix("."))
