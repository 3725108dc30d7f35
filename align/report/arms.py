"""Arms of a comparison: runs whose configs differ only in the seed; an arm is called what sets it apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import runs
from align.report.text import config_value, one_line

# Where a run is written and who watches it is no part of the experiment.
NOT_THE_EXPERIMENT = ("seed", "run_dir", "runs_root", "tracker", "resume", "checkpoint")
ABSENT = object()  # what `differing` compares a missing key as: not the same as null
LABEL_PARTS = 3


@dataclass(frozen=True)
class SeedRun:
    """One run: a seed of its arm."""

    record: runs.RunRecord
    seed: Any
    probes: Mapping[int, Mapping[str, Any]]  # step -> probe row
    # step -> (prompt id, sample) -> row, of step 0 and the last one only
    samples: Mapping[int, Mapping[tuple[str, int], Mapping[str, Any]]]

    @property
    def last(self) -> int | None:
        """The last probed step, None before the first probe."""
        return max(self.probes, default=None)

    def value(self, step: int, key: str) -> float | None:
        """A probe value; None where it was not logged or not finite."""
        value = self.probes.get(step, {}).get(key)
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Arm:
    label: str
    config: Mapping[str, Any]  # flat: dotted key -> value, without NOT_THE_EXPERIMENT
    seeds: tuple[SeedRun, ...]

    @property
    def steps(self) -> list[int]:
        """Every step that some seed has probed."""
        return sorted({step for run in self.seeds for step in run.probes})

    @property
    def end(self) -> int | None:
        """The last step that some seed has probed. Seeds that did not get there do not enter the arm's end values."""
        return max(self.steps, default=None)

    @property
    def at_end(self) -> tuple[SeedRun, ...]:
        return tuple(run for run in self.seeds if run.probes and run.last == self.end)

    def logs(self, key: str) -> bool:
        return any(run.value(step, key) is not None for run in self.seeds for step in run.probes)


def load(paths: Iterable[Path]) -> list[SeedRun]:
    """Read run directories, each once, in the order given. Raises runs.RunError naming the one that cannot be read."""
    return [_load(path) for path in {path.resolve(): path for path in paths}.values()]


def group(seed_runs: Sequence[SeedRun]) -> tuple[list[Arm], list[SeedRun]]:
    """Arms in order of first appearance, and the runs left out because their arm has another run of the same seed.

    Of several runs with one config and one seed the one that got furthest stays (the later given among equals):
    counted twice they would narrow every interval without being new evidence.
    """
    by_config: dict[str, dict[str, SeedRun]] = {}
    left_out = []
    for run in seed_runs:
        seeds = by_config.setdefault(json.dumps(_experiment(run), sort_keys=True, default=str), {})
        rival = seeds.get(str(run.seed))
        if rival is not None:
            run, worse = (rival, run) if _progress(rival) > _progress(run) else (run, rival)
            left_out.append(worse)
        seeds[str(run.seed)] = run
    members = [tuple(seeds.values()) for seeds in by_config.values()]
    configs = [_experiment(seeds[0]) for seeds in members]
    names = labels(configs)
    return [Arm(*parts) for parts in zip(names, configs, members, strict=True)], left_out


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Call each arm what sets it apart.

    Group names that differ come first (`algo.name`, `model.name`); then `key=value` for every key in which the arm
    differs from arms of the same names. The many keys that differ only because another algorithm has other keys are
    for the table of differences.
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
            words.append(f"{key}={config_value(config[key])}" if key in config else f"no {key}")
        parts.append(words)
    short = [_join(words, LABEL_PARTS) for words in parts]
    return short if len(set(short)) == len(short) else [_join(words, len(words)) for words in parts]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have one value in all configs, in order of appearance. A missing key is not null."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if any(config.get(key, ABSENT) != configs[0].get(key, ABSENT) for config in configs)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> {"algo.kl.coef": 0.04, ...}. Lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _experiment(run: SeedRun) -> dict[str, Any]:
    return {key: value for key, value in flatten(run.record.config).items() if key not in NOT_THE_EXPERIMENT}


def _progress(run: SeedRun) -> int:
    return -1 if run.last is None else run.last


def _join(words: Sequence[str], limit: int) -> str:
    more = [f"+{len(words) - limit} more"] if len(words) > limit else []
    return ", ".join([*words[:limit], *more]) or "run"


def _load(path: Path) -> SeedRun:
    try:
        record = runs.read(path, samples=True)
    except runs.RunError:
        raise
    except (ValueError, OSError, AttributeError) as error:  # a status.json cut in half, a file without permission
        raise runs.RunError(f"{path} is damaged: {error}") from error
    for name, value in (("config.yaml", record.config), ("meta.json", record.meta)):
        if not isinstance(value, Mapping):
            raise runs.RunError(f"{path} is damaged: {name} holds no mapping")
    probes = {}
    for row in record.phase("probe"):
        if not isinstance(row.get("step"), int):
            raise runs.RunError(f"{path / 'metrics.jsonl'}: probe row with step={row.get('step')!r}, expected a number")
        probes[row["step"]] = row
    samples: dict[int, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for row in record.samples:
        if isinstance(row.get("step"), int):
            samples.setdefault(row["step"], {})[str(row.get("prompt_id")), row.get("sample") or 0] = row
    wanted = {0, max(samples, default=0), max(probes, default=0)}
    slim = runs.RunRecord(record.path, record.config, record.meta, record.state, record.rows)
    return SeedRun(slim, record.config.get("seed"), probes, {step: samples[step] for step in wanted & set(samples)})
