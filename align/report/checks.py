"""What makes a comparison unsound, in sentences: other starts, other data, another ruler, runs that stopped early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from align.report.arms import Arm, SeedRun, differing, flatten, without
from align.report.text import config_value, listing, one_line, visible
from align.runs import VOLATILE

KEYS_SHOWN = 4
NOT_THE_PROBES = ("probe.every", *(f"sampling.{key}" for key in ("temperature", "top_k", "top_p", "min_p", "vllm",
                  "importance")))  # fmt: skip
# Log-probabilities of the policy less those of the reference: all 0 in truth at step 0. A policy whose head is trained
# is scored by another sum than its frozen reference; the two differ by 1e-5 nats per token in float32 (docs/log.md).
_PAIRS = [f"pref/{pairs}{key}" for pairs in ("", "train_") for key in ("margin", "chosen_logprob", "rejected_logprob")]
OF_BOTH = ("kl/", *_PAIRS)
SIGN_OF_BOTH = ("pref/accuracy", "pref/train_accuracy")  # the share of margins above 0, ties a half: of rounding, noise
NATS_PER_TOKEN = 2e-5
Members = list[tuple[Arm, SeedRun]]


def warnings(arms: Sequence[Arm], left_out: Sequence[SeedRun]) -> list[str]:
    """Everything a reader must know before believing the numbers, most serious first."""
    unequal = [*unequal_starts(arms), *unequal_step_zero(arms), *_unequal_rulers(arms)]
    return [*unequal, *_unread(arms), *_unfinished(arms, left_out)]


def _unread(arms: Sequence[Arm]) -> list[str]:
    """Files that are damaged beside metrics.jsonl, without which a run's numbers stand."""
    found = [reason for _, run in _members(arms) for reason in run.unread]
    return [f"{one_line(reason)}. Nothing of this file is used: what it holds is not shown, no interval is from it."
            for reason in found]  # fmt: skip


def unequal_starts(arms: Sequence[Arm]) -> list[str]:
    """Arms whose start weights or data are not the same; seed by seed where they depend on the seed."""
    found = []
    for key, what in (("start_fingerprint", "start weights"), ("data_fingerprint", "data")):
        for members in _comparable(arms, key):
            holders = _holders(members, lambda run, key=key: run.record.meta.get(key))
            if len(holders) > 1:
                found.append(
                    f"The runs do not have the same {what}: {_who_has_what(holders)}. "
                    "Differences between them are not the effect of what the arms are named after."
                )
                break
    return found


def _comparable(arms: Sequence[Arm], key: str) -> list[Members]:
    """Who should agree on a fingerprint: all runs, or all runs of one seed when it varies within an arm."""
    members = _members(arms)
    if all(len({str(run.record.meta.get(key)) for run in arm.seeds}) == 1 for arm in arms):
        return [members]
    return list(_holders(members, lambda run: run.seed).values())


def unequal_step_zero(arms: Sequence[Arm]) -> list[str]:
    """Runs of one seed that share start, data and ruler, and yet measured something else before the first update.

    The probe draws its random numbers from the run's seed, so runs of different seeds may differ.
    """
    found = []
    probed = [(arm, run) for arm, run in _members(arms) if 0 in run.probes and _fingerprints(run)]
    for members in _holders(probed, lambda run: [_fingerprints(run), _ruler(run), run.seed]).values():
        differ = {key: values for key in _probe_keys(members) if len(values := _values_at_zero(members, key)) > 1}
        if differ:
            key, values = next(iter(differ.items()))
            others = [visible(other) for other in differ if other != key]
            also = f" {_few(others)} also differ{'s' if len(others) == 1 else ''}." if others else ""
            found.append(
                "The arms share start, data and probe but are not equal at step 0: "
                f"{visible(key)} is {_who_has_what(values)}.{also} Something changed before the first update."
            )
    more = f" {len(found) - 1} more seed{'s are' if len(found) > 2 else ' is'} unequal too." if len(found) > 1 else ""
    return [f"{found[0]}{more}"] if found else []


def _fingerprints(run: SeedRun) -> list[Any] | None:
    found = [run.record.meta.get("start_fingerprint"), run.record.meta.get("data_fingerprint")]
    return None if None in found else found


def _ruler(run: SeedRun) -> dict[str, Any]:
    """What the probe's numbers depend on beside the policy. It samples at temperature 1, nothing cut off."""
    flat = flatten({"probe": run.record.config.get("probe"), "sampling": run.record.config.get("sampling")})
    return {key: value for key, value in without(flat, NOT_THE_PROBES).items() if value is not None}


def _unequal_rulers(arms: Sequence[Arm]) -> list[str]:
    found = []
    if len(_holders(_members(arms), _ruler)) > 1:
        keys = differing([_ruler(run) for _, run in _members(arms)])
        verb = "differs" if len(keys) == 1 else "differ"
        found.append(f"The runs were not measured in the same way: {_few(keys)} {verb}.")
    rewarded = [(arm, run) for arm, run in _members(arms) if arm.logs("reward/proxy")]
    if len(_holders(rewarded, lambda run: run.record.config.get("reward"))) > 1:
        found.append("The reward config differs between the arms: their proxy rewards are not the same quantity.")
    return found


def _unfinished(arms: Sequence[Arm], left_out: Sequence[SeedRun]) -> list[str]:
    found = []
    for arm in arms:
        alike: dict[str, Members] = {}
        for run in arm.seeds:
            if run.last is None:
                alike.setdefault(f"{run.record.state}, no probe yet: enters no number", []).append((arm, run))
            elif run.last != arm.end:
                what = f"{run.record.state}, last probe at step {run.last}: not in the numbers at step {arm.end}"
                alike.setdefault(what, []).append((arm, run))
            elif run.record.state == "finished" and arm.cut_off:
                what = f"finished, but its last probe is of step {run.last} of {config_value(arm.config.get('steps'))}"
                alike.setdefault(f"{what}: rows are missing", []).append((arm, run))
            elif run.record.state != "finished":
                alike.setdefault(f"{run.record.state}, last probe at step {run.last}", []).append((arm, run))
        found += [f"{_names(members)}: {what}." for what, members in alike.items()]
    for run in left_out:
        path = visible(str(run.record.path))
        found.append(f"{path} is left out: another run has the same config and seed and got as far or further.")
    return found


def _probe_keys(members: Members) -> list[str]:
    keys = dict.fromkeys(key for _, run in members for key in run.probes[0])
    left = (*VOLATILE, *SIGN_OF_BOTH)
    return [key for key in keys if "/" in key and not key.startswith(left)]  # without "/": counters


def _values_at_zero(members: Members, key: str) -> dict[str, Members]:
    """Value -> who logged it at step 0; to ten digits, for the same weights must give the same numbers.

    Runs of another reward than the first run's are set aside for the keys that are made of that reward. Of what is 0 in
    truth all values are one as long as they are no further apart than rounding.
    """
    of_reward = key.startswith("reward/") and key != "reward/gold"
    first = next(run.record.config.get("reward") for _, run in members if key in run.probes[0])
    logged = [(arm, run) for arm, run in members if key in run.probes[0]]
    if of_reward:
        logged = [(arm, run) for arm, run in logged if run.record.config.get("reward") == first]
    if key.startswith(OF_BOTH) and _rounding(logged, key):
        return {}
    return _holders(logged, lambda run: run.probes[0][key])


def _rounding(logged: Members, key: str) -> bool:
    values = [run.probes[0][key] for _, run in logged]
    tokens = flatten(logged[0][1].record.config).get("sampling.max_new_tokens")
    if not all(isinstance(value, int | float) for value in (*values, tokens)):
        return False
    return bool(max(values) - min(values) <= NATS_PER_TOKEN * tokens)


def _members(arms: Sequence[Arm]) -> Members:
    return [(arm, run) for arm in arms for run in arm.seeds]


def _holders(members: Members, of: Callable[[SeedRun], Any]) -> dict[str, Members]:
    """What each run has -> the runs that have it, in order of appearance."""
    holders: dict[str, Members] = {}
    for arm, run in members:
        holders.setdefault(config_value(of(run)), []).append((arm, run))
    return holders


def _who_has_what(holders: dict[str, Members]) -> str:
    return "; ".join(f"{value[:24]} in {_names(members)}" for value, members in holders.items())


def _names(members: Members) -> str:
    """ "grpo and dpo seed 1": an arm's name alone where all of its seeds are meant."""
    names = []
    for arm in {id(arm): arm for arm, _ in members}.values():
        seeds = [config_value(run.seed) for other, run in members if other is arm]
        which = "" if len(seeds) == len(arm.seeds) else f" seed{'s' if len(seeds) > 1 else ''} {' '.join(seeds)}"
        names.append(arm.label + which)
    return listing(names)


def _few(words: list[str]) -> str:
    return listing(words if len(words) <= KEYS_SHOWN else [*words[:KEYS_SHOWN], f"{len(words) - KEYS_SHOWN} more keys"])
