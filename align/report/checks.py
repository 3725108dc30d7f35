"""What makes a comparison unsound, in sentences: other starts, other data, another ruler, runs that stopped early."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from align.report.arms import Arm, SeedRun
from align.report.text import config_value, listing
from align.runs import VOLATILE

KEYS_SHOWN = 4


def warnings(arms: Sequence[Arm], left_out: Sequence[SeedRun]) -> list[str]:
    """Everything a reader must know before believing the numbers, most serious first."""
    return [*unequal_starts(arms), *unequal_step_zero(arms), *_unequal_rulers(arms), *_unfinished(arms, left_out)]


def unequal_starts(arms: Sequence[Arm]) -> list[str]:
    """Runs whose start weights or data are not the same ones."""
    found = []
    for key, what in (("start_fingerprint", "start weights"), ("data_fingerprint", "data")):
        holders = _holders(arms, lambda run, key=key: run.record.meta.get(key))
        if len(holders) > 1:
            found.append(
                f"The runs do not have the same {what} ({_who_has_what(holders)}): "
                "differences between them are not the effect of what the arms are named after."
            )
    return found


def unequal_step_zero(arms: Sequence[Arm]) -> list[str]:
    """Runs that share start, data and probe, and yet measured something else before the first update."""
    same_start: dict[str, list[tuple[Arm, SeedRun]]] = {}
    for arm in arms:
        for run in arm.seeds:
            start, data = (run.record.meta.get(f"{what}_fingerprint") for what in ("start", "data"))
            if start is not None and data is not None and 0 in run.probes:
                same_start.setdefault(json.dumps([start, data, _group(run, "probe")], default=str), []).append((arm, run))
    found = []
    for members in same_start.values():
        differ = {key: values for key in _probe_keys(members) if len(values := _values_at_zero(members, key)) > 1}
        if differ:
            key, values = next(iter(differ.items()))
            others = [other for other in differ if other != key]
            also = f" {_few(others)} also differ{'s' if len(others) == 1 else ''}." if others else ""
            found.append(
                "The runs share start, data and probe but are not equal at step 0: "
                f"{key} is {_who_has_what(values)}.{also} Something changed before the first update."
            )
    return found


def _unequal_rulers(arms: Sequence[Arm]) -> list[str]:
    found = []
    for group, consequence in (
        ("probe", "they were measured on other prompts or with another number of samples"),
        ("reward", "the proxy reward is not the same quantity in all arms, and only the other columns compare"),
    ):
        if len(_holders(arms, lambda run, group=group: _group(run, group))) > 1:
            found.append(f"The {group} config differs between the runs: {consequence}.")
    return found


def _unfinished(arms: Sequence[Arm], left_out: Sequence[SeedRun]) -> list[str]:
    found = []
    for arm in arms:
        alike: dict[str, list[tuple[Arm, SeedRun]]] = {}
        for run in arm.seeds:
            if run.last is None:
                alike.setdefault(f"{run.record.state}, no probe yet: enters no number", []).append((arm, run))
            elif run.last != arm.end:
                what = f"{run.record.state}, last probe at step {run.last}: does not enter the numbers at step {arm.end}"
                alike.setdefault(what, []).append((arm, run))
            elif run.record.state != "finished":
                alike.setdefault(f"{run.record.state}, last probe at step {run.last}", []).append((arm, run))
        found += [f"{_names(members)}: {what}." for what, members in alike.items()]
    for run in left_out:
        found.append(f"{run.record.path} is left out: another run has the same config and seed and got as far or further.")
    return found


def _probe_keys(members: Iterable[tuple[Arm, SeedRun]]) -> list[str]:
    keys = dict.fromkeys(key for _, run in members for key in run.probes[0])
    return [key for key in keys if "/" in key and not key.startswith(VOLATILE)]  # without "/": counters


def _values_at_zero(members: Sequence[tuple[Arm, SeedRun]], key: str) -> dict[str, list[tuple[Arm, SeedRun]]]:
    """Value -> who logged it at step 0; compared exactly, for the same weights must give the same numbers.

    Runs of another reward than the first run's are set aside for the keys that are made of that reward.
    """
    of_reward = key.startswith("reward/") and key != "reward/gold"
    values: dict[str, list[tuple[Arm, SeedRun]]] = {}
    for arm, run in members:
        if key in run.probes[0] and not (of_reward and _group(run, "reward") != _group(members[0][1], "reward")):
            values.setdefault(config_value(run.probes[0][key]), []).append((arm, run))
    return values


def _group(run: SeedRun, name: str) -> str:
    return json.dumps(run.record.config.get(name), sort_keys=True, default=str)


def _holders(arms: Sequence[Arm], of: Any) -> dict[str, list[tuple[Arm, SeedRun]]]:
    holders: dict[str, list[tuple[Arm, SeedRun]]] = {}
    for arm in arms:
        for run in arm.seeds:
            holders.setdefault(config_value(of(run)), []).append((arm, run))
    return holders


def _who_has_what(holders: dict[str, list[tuple[Arm, SeedRun]]]) -> str:
    return "; ".join(f"{value[:24]} in {_names(members)}" for value, members in holders.items())


def _names(members: Sequence[tuple[Arm, SeedRun]]) -> str:
    """ "grpo and dpo seed 1": an arm's name alone where all of its seeds are meant."""
    names = []
    for arm in {id(arm): arm for arm, _ in members}.values():
        seeds = [config_value(run.seed) for other, run in members if other is arm]
        which = "" if len(seeds) == len(arm.seeds) else f" seed{'s' if len(seeds) > 1 else ''} {' '.join(seeds)}"
        names.append(arm.label + which)
    return listing(names)


def _few(words: list[str]) -> str:
    return listing(words if len(words) <= KEYS_SHOWN else [*words[:KEYS_SHOWN], f"{len(words) - KEYS_SHOWN} more keys"])
