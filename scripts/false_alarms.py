"""How often `align.compare` would call one policy different from itself: stored completions, drawn into two arms.

FILE holds one JSON object per line, {"prompt_id", "sample", numbers ...}: many completions per prompt of one untouched
policy, as samples.jsonl of a run with a large `probe.samples` has them at step 0. 1,000 times, two arms are drawn from
it that share no completion: S pseudo-seeds with k completions per prompt each. Every number that is not the same in all
rows is compared as the page would, and all of them as one family after Holm. Without FILE on simulated completions.
`python scripts/false_alarms.py runs/NAME/samples.jsonl`
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.report.inference import difference, holm

Array = NDArray[np.float64]
RESAMPLES, LEVEL = 1000, 0.05
DESIGNS = ((1, 1), (1, 4), (3, 1), (3, 4), (5, 1), (5, 4))  # seeds, completions per prompt and seed
NO_NUMBERS = {"prompt_id", "sample", "step", "seed"}


def load(lines: Sequence[str]) -> dict[str, Array]:
    """Key -> [prompts, samples], NaN where a completion has no value. Prompts are cut to the fewest samples of any."""
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        row = json.loads(line)
        rows[row["prompt_id"]].append(row)
    if len({row.get("step") for group in rows.values() for row in group}) > 1:
        raise SystemExit("the rows are of several steps: keep those of one, for the policy must be one")
    fewest = min(len(group) for group in rows.values())
    every = [row for group in rows.values() for row in group]
    numbers = dict.fromkeys(k for row in every for k, v in row.items() if isinstance(v, int | float))
    data = {
        key: np.array([[_number(row.get(key)) for row in group[:fewest]] for group in rows.values()])
        for key in numbers
        if key not in NO_NUMBERS
    }
    return {key: values for key, values in data.items() if np.nanmin(values) < np.nanmax(values)}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def simulated(rng: np.random.Generator, prompts: int = 63, samples: int = 40) -> dict[str, Array]:
    """What a policy's numbers look like: prompt effects, log-normal lengths cut off at 128, mostly 0 repetition."""
    shape = (prompts, samples)
    tokens = np.minimum(np.exp(3.3 + 0.5 * rng.normal(size=(prompts, 1)) + 0.7 * rng.normal(size=shape)), 128).round()
    return {
        "gold": rng.normal(size=(prompts, 1)) + rng.choice([-1.0, 0.0, 2.0], p=[0.3, 0.5, 0.2], size=shape),
        "tokens": tokens,
        "truncated": (tokens == 128).astype(float),
        "rep3": np.where(rng.random(shape) < 0.1, rng.beta(1, 3, size=shape), 0.0),
        "rare": (rng.random(shape) < 0.01).astype(float),
    }


def alarms(data: Mapping[str, Array], seeds: int, completions: int, paired: bool) -> dict[str, float]:
    """Key -> share of the resamples with p < 5 %; under "family" that with any p < 5 % after Holm."""
    rng = np.random.default_rng((seeds, completions, paired))
    prompts, samples = next(iter(data.values())).shape
    counts = dict.fromkeys([*data, "family"], 0)
    for _ in range(RESAMPLES):
        drawn = rng.permuted(np.tile(np.arange(samples), (prompts, 1)), axis=1)[:, : 2 * seeds * completions]
        p_values = {}
        for key, values in data.items():
            cells = np.take_along_axis(values, drawn, axis=1).reshape(prompts, 2, seeds, completions)
            arms = _means(cells).transpose(1, 2, 0)
            found = difference(_as_values(arms[0], 0), _as_values(arms[1], 0 if paired else seeds))
            p_values[key] = None if found is None else found.p
            counts[key] += _below(p_values[key])
        counts["family"] += any(_below(p) for p in holm(p_values).values())
    return {key: count / RESAMPLES for key, count in counts.items()}


def _means(cells: Array) -> Array:
    """Means over the completions that have a value; NaN where none has."""
    there = ~np.isnan(cells)
    with np.errstate(invalid="ignore"):
        return np.where(there, cells, 0.0).sum(-1) / there.sum(-1)


def _as_values(arm: Array, first_seed: int) -> dict[str, dict[str, float]]:
    return {str(first_seed + s): {str(x): float(v) for x, v in enumerate(row)} for s, row in enumerate(arm)}


def _below(p: float | None) -> bool:
    return p is not None and p < LEVEL


def main(arguments: Sequence[str]) -> None:
    data = (
        load(Path(arguments[0]).read_text("utf-8").splitlines()) if arguments else simulated(np.random.default_rng(0))
    )
    prompts, samples = next(iter(data.values())).shape
    print(f"{prompts} prompts x {samples} completions, {RESAMPLES} resamples\n")
    print("| seeds | completions | seeds paired |", " | ".join([*data, "family"]), "|")
    print("| --- " * (len(data) + 4) + "|")
    for seeds, completions in DESIGNS:
        if 2 * seeds * completions > samples:
            print(f"| {seeds} | {completions} | needs {2 * seeds * completions} completions per prompt |")
            continue
        for paired in (False, True) if seeds > 1 else (False,):
            rates = alarms(data, seeds, completions, paired)
            cells = [f"{r:.1%} ± {math.sqrt(r * (1 - r) / RESAMPLES):.1%}" for r in rates.values()]
            print(f"| {seeds} | {completions} | {'yes' if paired else 'no'} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
