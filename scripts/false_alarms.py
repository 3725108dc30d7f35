"""How often `align.compare` would call one policy different from itself: stored completions, drawn into two arms.

FILE holds one JSON object per line, {"prompt_id", "sample", numbers ...}: many completions per prompt of one untouched
policy, as samples.jsonl of a run with a large `probe.samples` has them at step 0. 1,000 times, two arms are drawn from
it that share no completion: S pseudo-seeds with k completions per prompt each. Every number that is not the same in all
rows is compared as the page would, the win rate between the arms with a half, distinct-2 and self-BLEU (of words here)
by their seeds alone, and all of them as one family after Holm. Without FILE on simulated completions.
`python scripts/false_alarms.py scripts/data/start-model.jsonl.gz`, which is 63 prompts x 16 completions of SmolLM2-135M
(`align.run algo=temperature probe.prompts=63 probe.samples=16`, step 0); a samples.jsonl of one step will do as well.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.maths.text import distinct, self_bleu
from align.report.inference import difference, holm, seed_difference

Array = NDArray[np.float64]
RESAMPLES, LEVEL = 1000, 0.05
DESIGNS = ((1, 1), (1, 4), (3, 1), (3, 4), (5, 1), (5, 4))  # seeds, completions per prompt and seed
NO_NUMBERS = {"prompt_id", "sample", "step", "seed", "finished"}


@dataclass(frozen=True)
class Stored:
    """Completions of one policy: key -> numbers [prompts, samples], NaN where one has none; words of each, or []."""

    numbers: Mapping[str, Array]
    words: Sequence[Sequence[Sequence[str]]]

    @property
    def shape(self) -> tuple[int, int]:
        return next(iter(self.numbers.values())).shape


def load(lines: Sequence[str]) -> Stored:
    """Prompts are cut to the fewest samples of any; a key that is the same everywhere is left out."""
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        row = json.loads(line)
        rows[row["prompt_id"]].append(row | {"truncated": 1 - row["finished"]} if "finished" in row else row)
    if len({row.get("step") for group in rows.values() for row in group}) > 1:
        raise SystemExit("the rows are of several steps: keep those of one, for the policy must be one")
    fewest = min(len(group) for group in rows.values())
    groups = [group[:fewest] for group in rows.values()]
    keys = dict.fromkeys(k for group in groups for row in group for k, v in row.items() if isinstance(v, int | float))
    data = {
        key: np.array([[_number(row.get(key)) for row in group] for group in groups])
        for key in keys
        if key not in NO_NUMBERS
    }
    words = [[str(row.get("completion", "")).split() for row in group] for group in groups]
    return Stored({key: values for key, values in data.items() if np.nanmin(values) < np.nanmax(values)}, words)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def simulated(rng: np.random.Generator, prompts: int = 63, samples: int = 40) -> Stored:
    """What a policy's numbers look like: prompt effects, log-normal lengths cut off at 128, mostly 0 repetition."""
    shape = (prompts, samples)
    tokens = np.minimum(np.exp(3.3 + 0.5 * rng.normal(size=(prompts, 1)) + 0.7 * rng.normal(size=shape)), 128).round()
    made = {
        "gold": rng.normal(size=(prompts, 1)) + rng.choice([-1.0, 0.0, 2.0], p=[0.3, 0.5, 0.2], size=shape),
        "tokens": tokens,
        "truncated": (tokens == 128).astype(float),
        "rep3": np.where(rng.random(shape) < 0.1, rng.beta(1, 3, size=shape), 0.0),
        "rare": (rng.random(shape) < 0.01).astype(float),
    }
    return Stored(made, [])


def alarms(stored: Stored, seeds: int, completions: int, paired: bool) -> dict[str, float]:
    """Key -> share of the resamples with p < 5 %; under "family" that with any p < 5 % after Holm."""
    rng = np.random.default_rng((seeds, completions, paired))
    prompts, samples = stored.shape
    counts: Counter[str] = Counter()
    for _ in range(RESAMPLES):
        drawn = rng.permuted(np.tile(np.arange(samples), (prompts, 1)), axis=1)[:, : 2 * seeds * completions]
        p_values = compared(stored, drawn.reshape(prompts, 2, seeds, completions), 0 if paired else seeds)
        counts.update(key for key, p in p_values.items() if _below(p))
        counts["family"] += any(_below(p) for p in holm(p_values).values())
    return {key: counts[key] / RESAMPLES for key in [*p_values, "family"]}


def compared(stored: Stored, drawn: NDArray[np.int64], first_seed: int) -> dict[str, float | None]:
    """Key -> p of the difference between two arms; drawn [prompts, 2, seeds, completions] are the samples they have.

    The second arm's seeds are numbered from `first_seed` on: from 0 they are paired with the first arm's.
    """
    prompts, seeds = drawn.shape[0], drawn.shape[2]
    tested = {}
    for key, values in stored.numbers.items():
        cells = np.take_along_axis(values, drawn.reshape(prompts, -1), axis=1).reshape(drawn.shape)
        arms = _means(cells).transpose(1, 2, 0)
        tested[key] = difference(_as_values(arms[0], 0), _as_values(arms[1], first_seed))
        if key == "gold":  # each answer against the other arm's to the same prompt
            won = ((np.sign(cells[:, 0] - cells[:, 1]) + 1) / 2).mean(-1).T
            tested["win"] = difference(_as_values(won, 0), _as_values(np.full_like(won, 0.5), 0))
    for name, measure in (("distinct2", distinct), ("self_bleu", self_bleu)) if stored.words and seeds > 1 else ():
        arms = [{str(arm * first_seed + s): measure(_texts(stored, drawn[:, arm, s])) for s in range(seeds)}
                for arm in (0, 1)]  # fmt: skip
        tested[name] = seed_difference(*arms)
    return {key: None if found is None else found.p for key, found in tested.items()}


def _texts(stored: Stored, drawn: NDArray[np.int64]) -> list[Sequence[str]]:
    return [group[i] for group, chosen in zip(stored.words, drawn, strict=True) for i in chosen]


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
    stored = load(_lines(Path(arguments[0]))) if arguments else simulated(np.random.default_rng(0))
    prompts, samples = stored.shape
    print(f"{prompts} prompts x {samples} completions, {RESAMPLES} resamples\n")
    for seeds, completions in DESIGNS:
        if 2 * seeds * completions > samples:
            print(f"{seeds} seeds x {completions}: needs {2 * seeds * completions} completions per prompt")
            continue
        for paired in (False, True) if seeds > 1 else (False,):
            rates = alarms(stored, seeds, completions, paired)
            cells = [f"{key} {r:.1%} ± {math.sqrt(r * (1 - r) / RESAMPLES):.1%}" for key, r in rates.items()]
            print(f"{seeds} seeds x {completions}, {'paired' if paired else 'unpaired'}:", ", ".join(cells), flush=True)


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()


if __name__ == "__main__":
    main(sys.argv[1:])
