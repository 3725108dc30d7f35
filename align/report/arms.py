"""Arms of a comparison: runs whose configs differ only in the seed; an arm is called what sets it apart."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align import runs
from align.locks import held
from align.report.text import config_value, one_line
from align.rows import RunError, read_lines

# Where a run is written and who watches it is no part of the experiment.
NOT_THE_EXPERIMENT = ("seed", *runs.CIRCUMSTANCES)
# algo.kind of what trains nothing: the start model sampled differently. Their steps are n or temperatures.
BEST_OF_N, TEMPERED = "best_of_n", "tempered"
# Differences are told in this order, the science first; then the rest; last what changes speed and rounding alone.
SCIENCE = ("algo.name", "algo.kind", "model.name", "data.name", "reward.formula", "algo.", "reward.", "data.", "model.",
           "sampling.", "steps", "probe.")  # fmt: skip
SPEED_ALONE = ("algo.micro_batch", "sampling.rows", "guard.", "device", "dtype")
ABSENT = object()  # what `differing` compares a missing key as: not the same as null
LABEL_PARTS = 2  # more only where arms would share a name


@dataclass(frozen=True)
class SeedRun:
    """One run: a seed of its arm."""

    record: runs.RunRecord
    seed: Any
    probes: Mapping[int, Mapping[str, Any]]  # step -> probe row
    # step -> (prompt id, sample) -> row, of step 0 and the last one only
    samples: Mapping[int, Mapping[tuple[str, int], Mapping[str, Any]]]
    events: tuple[Mapping[str, Any], ...] = ()  # of events.jsonl
    unread: tuple[str, ...] = ()  # samples.jsonl and events.jsonl where they are damaged: where and how

    @property
    def last(self) -> int | None:
        """The last probed step, None before the first probe."""
        return max(self.probes, default=None)

    def value(self, step: int, key: str) -> float | None:
        """A probe value; None where it was not logged or not finite."""
        value = self.probes.get(step, {}).get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def sharpness(self, step: int) -> tuple[float, float]:
        """Temperature and top-p of a row of the start model sampled colder, (1, 1) at its start; 0 in other rows."""
        temperature, top_p = (self.value(step, f"sampling/{key}") for key in ("temperature", "top_p"))
        return temperature or 0.0, 1.0 if top_p is None else top_p


@dataclass(frozen=True)
class Arm:
    label: str
    config: Mapping[str, Any]  # flat: dotted key -> value, without NOT_THE_EXPERIMENT
    seeds: tuple[SeedRun, ...]
    style: int = 0  # its look in every figure and table: 0, 1, ... for trained arms, -1, -2, ... for baselines

    @property
    def kind(self) -> str:
        return str(self.config.get("algo.kind"))

    @property
    def trained(self) -> bool:
        """Whether its steps are training; best-of-n and temperatures are baselines, with n or T in their place."""
        return self.kind not in (BEST_OF_N, TEMPERED)

    def setting(self, step: int) -> str:
        """What a baseline's step stands for: "n=4", "T=0.7", "T=0.7, p=0.9"."""
        if self.kind == BEST_OF_N:
            return f"n={2**step}" if step < 64 else f"n=2^{step}"  # of a damaged run: it never draws so many
        temperature, top_p = max(
            run.sharpness(step) for run in self.seeds
        )  # of one arm all that got there have the same
        return f"T={temperature:g}" + (f", p={top_p:g}" if top_p < 1 else "")

    @property
    def steps(self) -> list[int]:
        """Every step that some seed has probed."""
        return sorted({step for run in self.seeds for step in run.probes})

    @property
    def end(self) -> int | None:
        """The last step that some seed has probed. Seeds that did not get there do not enter the arm's end values."""
        return max(self.steps, default=None)

    @property
    def cut_off(self) -> bool:
        """Whether no seed has got to the step that the config asks for."""
        return self.end is not None and self.config.get("steps", self.end) != self.end

    @property
    def at_end(self) -> tuple[SeedRun, ...]:
        return tuple(run for run in self.seeds if run.probes and run.last == self.end)

    def logs(self, key: str) -> bool:
        return any(run.value(step, key) is not None for run in self.seeds for step in run.probes)


def load(paths: Iterable[Path]) -> list[SeedRun]:
    """Read run directories, each once, in the order given. Raises RunError naming the one that cannot be read."""
    return [_load(path) for path in {path.resolve(): path for path in paths}.values()]


def group(seed_runs: Sequence[SeedRun]) -> tuple[list[Arm], list[SeedRun]]:
    """Arms in order of first appearance, and the runs left out because their arm has another run of the same seed.

    Of several runs with one config and one seed the one that got furthest stays (the later given among equals):
    counted twice they would narrow every interval without being new evidence.
    """
    by_config: dict[str, dict[str, SeedRun]] = {}
    left_out = []
    for run in seed_runs:
        given = {key: value for key, value in _experiment(run).items() if value is not None}  # as in config_hash
        seeds = by_config.setdefault(json.dumps(given, sort_keys=True, default=str), {})
        rival = seeds.get(str(run.seed))
        if rival is not None:
            run, worse = (rival, run) if _progress(rival) > _progress(run) else (run, rival)
            left_out.append(worse)
        seeds[str(run.seed)] = run
    members = [tuple(seeds.values()) for seeds in by_config.values()]
    configs = [_experiment(seeds[0]) for seeds in members]
    arms = [Arm(*parts) for parts in zip(labels(configs), configs, members, strict=True)]
    return _styled(arms), left_out


def _styled(arms: Sequence[Arm]) -> list[Arm]:
    """Baselines take no colour away from the arms."""
    trained, baselines = itertools.count(), itertools.count(-1, -1)
    return [replace(arm, style=next(trained if arm.trained else baselines)) for arm in arms]


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Call each arm what sets it apart.

    Group names that differ come first (`algo.name`, `model.name`); then `key=value` for every key in which the arm
    differs from arms of the same names, without the `algo.` that most of them begin with. The many keys that differ
    only because another algorithm has other keys are for the table of differences.
    """
    if len(configs) == 1:
        return [one_line(str(configs[0].get("algo.name", "run")))]
    names = [key for key in differing(configs) if key.count(".") == 1 and key.endswith(".name")]
    parts = []
    for config in configs:
        named = [config.get(name) for name in names]
        peers = [other for other in configs if [other.get(name) for name in names] == named]
        words = [config_value(config[name]) for name in names if name in config]
        for key in differing(peers):
            name = key.removeprefix("algo.")
            if any(other.startswith(f"{key}.") for other in config):
                continue  # null elsewhere, a group here: its keys say so, and "no" would say the opposite
            words.append(f"{name}={config_value(config[key])}" if key in config else f"no {name}")
        parts.append(words)
    for limit in range(LABEL_PARTS, max(map(len, parts)) + 1):
        short = [_join(words, limit) for words in parts]
        if len(set(short)) == len(short):
            return short
    return [_join(words, len(words)) for words in parts]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have one value in all configs, what matters most first. A missing key is not null."""
    keys = dict.fromkeys(key for config in configs for key in config)
    found = [key for key in keys if any(config.get(key, ABSENT) != configs[0].get(key, ABSENT) for config in configs)]
    return sorted(found, key=_rank)  # stable: in order of appearance within a rank


def _rank(key: str) -> int:
    if key.startswith(SPEED_ALONE):
        return len(SCIENCE) + 1
    return next((rank for rank, start in enumerate(SCIENCE) if key.startswith(start)), len(SCIENCE))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> {"algo.kl.coef": 0.04, ...}. Lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for raw, value in config.items():
        key = one_line(str(raw))  # of a file that anybody may have written; it stands in tables and figures
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config says which experiment it is, flat."""
    return without(flatten(config), NOT_THE_EXPERIMENT)


def without(flat: Mapping[str, Any], left: Sequence[str]) -> dict[str, Any]:
    """A flat config without these keys; a group that is named goes whole."""
    return {k: v for k, v in flat.items() if not any(k == name or k.startswith(f"{name}.") for name in left)}


def _experiment(run: SeedRun) -> dict[str, Any]:
    return experiment(run.record.config)


def _progress(run: SeedRun) -> int:
    return -1 if run.last is None else run.last


def _join(words: Sequence[str], limit: int) -> str:
    more = f" (+{len(words) - limit} more)" if len(words) > limit else ""
    return (", ".join(words[:limit]) + more) or "run"


def _load(path: Path) -> SeedRun:
    record = runs.read(path)
    probes = {}
    for row in record.phase("probe"):
        if not isinstance(row.get("step"), int):
            raise RunError(f"{path / 'metrics.jsonl'}: probe row with step={row.get('step')!r}, expected a number")
        probes[row["step"]] = row
    unread: list[str] = []
    samples = _beside(path / "samples.jsonl", _by_step, unread)
    events = _beside(path / "events.jsonl", enumerate, unread)
    wanted = {0, max(samples, default=0), max(probes, default=0)}
    kept = {step: samples[step] for step in wanted & set(samples)}
    record = replace(record, state=_state(record))
    return SeedRun(record, record.config.get("seed"), probes, kept, tuple(events.values()), tuple(unread))


def _beside(path: Path, of: Callable[[list[dict[str, Any]]], Any], unread: list[str]) -> dict[int, Any]:
    """What a run wrote beside its numbers. A damaged file counts as none, and `unread` says so: a finished run would
    never get its page, and a sweep never end, for one line of them."""
    try:
        rows = read_lines(path)
    except RunError as error:  # it names the file
        unread.append(str(error))
        return {}
    try:
        return dict(of(rows))
    except RunError as error:
        unread.append(f"{path}: {error}")
        return {}


def _by_step(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[tuple[str, int], Mapping[str, Any]]]:
    samples: dict[int, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for row in rows:
        sample = row.get("sample") or 0
        if type(sample) is not int:
            raise RunError(f"a row with sample={sample!r}, expected a whole number")
        if isinstance(row.get("step"), int):
            samples.setdefault(row["step"], {})[str(row.get("prompt_id")), sample] = row
    return samples


def _state(record: runs.RunRecord) -> str:
    """A run that says it is running, and nobody holds its lock, was killed, or its machine went down."""
    if record.state != "running" or held(record.path) is not False:
        return record.state
    state = runs.read(record.path).state  # it may have ended since it was read
    return "stopped" if state == "running" else state
