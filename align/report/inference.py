"""Differences between arms, and within an arm between start and end: intervals and p-values that few seeds can carry.

Two things make a difference uncertain. Another seed would have trained another policy, and other held-out prompts would
have given other numbers. The layout is crossed: all seeds answer the same prompts.

    d[s, x] = mu + seed_s + prompt_x + rest_sx        Var(mean) = seed^2 / S + prompt^2 / X + rest^2 / (S X)

Student's t over the seeds' means sees the first and last term; it takes the prompts as given. The bootstrap sees all
three. The wider of the two decides: the hull of both, and the larger p. What each covers is measured by
scripts/coverage.py (docs/log.md, 22 Nov). Prompts count as independent draws; topics that several share are not seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

Values = Mapping[str, Mapping[str, float]]  # seed -> prompt id -> mean over the completions of one arm to that prompt
Array = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

LEVEL = 0.95
REPLICATES = 20_000  # its p is never below 2 / 20,001: under Holm a family of 500 tests can still decide something
ROUNDING = 1e-12  # of the largest value: a spread below this is that of floating point, not of the data


@dataclass(frozen=True)
class Difference:
    """A mean difference, its interval and the two-sided p-value that goes with it: p < 1 - level iff 0 is outside.

    low, high and p are None where there is nothing to estimate them from: a single value, or values that are all the
    same and not 0, of which nobody can tell how much they would vary.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int  # of the arm that has fewer
    prompts: int  # with a value in every seed used of both arms; 0 where the key has no values per prompt
    paired: bool  # each seed of one arm against the same seed of the other: common random numbers
    by: str  # whose interval it is: "seeds" (Student's t) | "bootstrap" | "prompts" (one seed: no word on other seeds)


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    p: float
    by: str

    @property
    def width(self) -> float:
        return self.high - self.low


def difference(a: Values, b: Values, *, level: float = LEVEL) -> Difference | None:
    """Mean of a - b over seeds and prompts, None without a common prompt. A change in an arm is difference(end, start).

    Two seeds or more in common: only these, paired. Otherwise all seeds of both arms, unpaired (Welch), when each has
    two or more. With one seed in an arm: t over the prompts, on the common seed where there is one, else between the
    arms' averages over their seeds.
    Only prompts with a finite value in every seed used of both arms count.
    """
    a, b = _measured(a), _measured(b)
    seeds_a, seeds_b, paired = _seeds(a, b)
    used = [a[seed] for seed in seeds_a] + [b[seed] for seed in seeds_b]
    prompts = [prompt for prompt in used[0] if all(prompt in values for values in used)] if used else []
    if not seeds_a or not seeds_b or not prompts:
        return None
    left, right = _table(a, seeds_a, prompts), _table(b, seeds_b, prompts)
    layout = [left - right] if paired else [left, -right]
    seeds, mean = min(len(left), len(right)), float(left.mean() - right.mean())
    if seeds == 1:
        per_prompt = sum(part.mean(0) for part in layout)
        found = [student([per_prompt], level, "prompts")] if len(prompts) > 1 else []
        return _decide(Difference(mean, None, None, None, 1, len(prompts), paired, "prompts"), found)
    floors = [rest / len(prompts) for rest in _rests(layout)]
    found = [student([part.mean(1) for part in layout], level, "seeds", floors), bootstrap(layout, level)]
    return _decide(Difference(mean, None, None, None, seeds, len(prompts), paired, "seeds"), found)


def seed_difference(a: Mapping[str, float], b: Mapping[str, float], *, level: float = LEVEL) -> Difference | None:
    """The same for keys with one value per seed and none per prompt (distinct-2, values at a matched KL): t alone."""
    a, b = _finite(a), _finite(b)
    seeds_a, seeds_b, paired = _seeds(a, b)
    if not seeds_a or not seeds_b:
        return None
    left, right = np.array([a[seed] for seed in seeds_a]), np.array([b[seed] for seed in seeds_b])
    seeds, mean = min(len(left), len(right)), float(left.mean() - right.mean())
    found = [student([left - right] if paired else [left, -right], level, "seeds")] if seeds > 1 else []
    return _decide(Difference(mean, None, None, None, seeds, 0, paired, "seeds"), found)


def student(samples: Sequence[Array], level: float, by: str, floors: Sequence[float] = (0.0, 0.0)) -> Interval:
    """Student's t for a sum of means: of one sample of paired differences, or of two unpaired ones (Welch 1947).

        mean ± t((1 + level) / 2, df) sqrt(sum s_i^2 / n_i),   df as in `_welch`: n - 1 for one sample

    Two or three seed means of a rare 0/1 key are equal by chance often enough, and would claim to be certain. Where a
    sample has no spread at all, `floors` has what its cells alone give it: rest^2 / X.
    """
    mean = float(sum(sample.mean() for sample in samples))
    error, df = _welch(samples, floors)
    if error == 0:
        return Interval(mean, mean, 0.0 if mean else 1.0, by)
    half = float(stdtrit(df, (1 + level) / 2)) * error
    return Interval(mean - half, mean + half, float(2 * stdtr(df, -abs(mean) / error)), by)


def bootstrap(layout: Sequence[Array], level: float) -> Interval:
    """Percentile interval of the hierarchical bootstrap: seeds with replacement, then prompts, once for all seeds.

    layout [S, X] each: the paired differences, or one arm and the other's negative, whose seeds are drawn on their own.

        replicate = mean + sum_s w_s k (d[s, .] - mean) + c sum_x w_x k' (d[., x] - mean),   w multinomial over n, by n

    Prompts are drawn once for all seeds. Drawn anew within each seed, as if nested, their variance would be divided by
    S, though the seeds share them. Rows and columns of d drawn as they are count the rest three times (Owen 2007,
    doi:10.1214/07-AOAS122): in seed means, in prompt means, in cells. Here the seed means carry it, once, and c shrinks
    the prompt means to the spread that is the prompts' own (`_shrinkage`).

    k = sqrt(n / (n - 1)) t(df) / z widens a percentile interval of few units to what the t interval would be for normal
    ones (the expanded percentile interval of Hesterberg 2015, doi:10.1080/00031305.2015.1089789). Without it the
    wider interval held 91.5 to 93 % where seeds and prompts matter alike (docs/log.md, 22 Nov).

    p = 2 min(P(replicate <= 0), P(replicate >= 0)), with one added to counts: never below 2 / (REPLICATES + 1).
    """
    prompts = sum(part.mean(0) for part in layout)
    seed_means, mean = [part.mean(1) for part in layout], float(prompts.mean())
    df = _welch(seed_means)[1]
    total = mean + _drawn(prompts, len(prompts) - 1, len(layout), level) * _shrinkage(layout)
    for stream, means in enumerate(seed_means):
        total = total + _drawn(means, df, stream, level)
    replicates = np.sort(total)
    edge = round(REPLICATES * (1 - level) / 2) - 1
    beyond = min(np.count_nonzero(replicates <= 0), np.count_nonzero(replicates >= 0))
    # With 20,000 replicates: 0 is below the 500th smallest iff at most 499 are <= 0 iff p <= 1000 / 20001 < 0.05.
    p = min(1.0, 2 * (beyond + 1) / (REPLICATES + 1))
    return Interval(float(replicates[edge]), float(replicates[-1 - edge]), p, "bootstrap")


def holm(p_values: Mapping[K, float | None]) -> dict[K, float | None]:
    """p-values adjusted so that the chance of any false alarm in the family stays below the level (Holm 1979).

        adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    None stays None and does not count: nothing was tested there.
    """
    adjusted: dict[K, float | None] = dict.fromkeys(p_values)
    tested = sorted((p, place) for place, p in enumerate(p_values.values()) if p is not None)
    keys, floor = list(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        floor = max(floor, min(1.0, (len(tested) - rank) * p))
        adjusted[keys[place]] = floor
    return adjusted


def _welch(samples: Sequence[Array], floors: Sequence[float] = (0.0, 0.0)) -> tuple[float, float]:
    """Standard error of a sum of means and its degrees of freedom; a spread that is only rounding is none.

    v_i = s_i^2 / n_i,   error = sqrt(sum v_i),   df = (sum v_i)^2 / sum(v_i^2 / (n_i - 1))
    """
    v = np.array([_variance(x, floor) / len(x) for x, floor in zip(samples, floors, strict=False)])
    error = math.sqrt(v.sum())
    if error <= ROUNDING * max(np.abs(sample).max() for sample in samples):
        return 0.0, math.inf
    return error, float(v.sum() ** 2 / sum(v_i**2 / (len(x) - 1) for v_i, x in zip(v, samples, strict=True)))


def _variance(sample: Array, floor: float) -> float:
    """With n - 1; the floor where there is no more than rounding."""
    variance = float(sample.var(ddof=1))
    return variance if math.sqrt(variance) > ROUNDING * np.abs(sample).max() else floor


def _drawn(values: Array, df: float, stream: int, level: float) -> Array:
    """[REPLICATES] deviations of resampled means from the mean, widened by k of `bootstrap`."""
    n = len(values)
    if n == 1:
        return np.zeros(REPLICATES)
    t_over_z = float(stdtrit(df, (1 + level) / 2) / ndtri((1 + level) / 2)) if math.isfinite(df) else 1.0
    return _weights(n, stream) @ (values - values.mean()) * (math.sqrt(n / (n - 1)) * t_over_z)


def _shrinkage(layout: Sequence[Array]) -> float:
    """What of the prompt means' spread is the prompts' own, by the two-way analysis of variance.

        c^2 = max(0, 1 - sum_i rest_i^2 / S_i / Var(d[., x])),   rest^2 = residuals' sum of squares / ((S - 1) (X - 1))

    After Carpenter, Goldstein & Rasbash 2003 (J. R. Stat. Soc. C 52, 431), who rescale residuals before resampling.
    """
    prompts = sum(part.mean(0) for part in layout)
    variance = float(prompts.var(ddof=1)) if len(prompts) > 1 else 0.0
    rest = sum(part_rest / len(part) for part, part_rest in zip(layout, _rests(layout), strict=True))
    return math.sqrt(max(0.0, 1 - rest / variance)) if variance > 0 else 0.0


def _rests(layout: Sequence[Array]) -> list[float]:
    """rest^2 of each part: residuals' sum of squares / ((S - 1) (X - 1))"""
    found = []
    for part in layout:
        S, X = part.shape
        residuals = part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()
        found.append(float((residuals**2).sum()) / max(1, (S - 1) * (X - 1)))
    return found


@functools.lru_cache(maxsize=16)
def _weights(units: int, stream: int) -> Array:
    """[REPLICATES, units] share of each unit in each replicate. Seeded by the shape alone: a page is the same twice."""
    counts = np.random.default_rng((units, stream)).multinomial(units, np.full(units, 1 / units), size=REPLICATES)
    return counts / units


def _decide(bare: Difference, found: Sequence[Interval]) -> Difference:
    """With the hull of the intervals, which is the wider one where it holds the other, and the larger p.

    All hold the mean, so 0 is outside the hull iff it is outside each of them: iff every p, and so the larger, says so.
    A bootstrap of three seeds can be wider than t, lopsided, and leave out a 0 that t holds.
    """
    if not found or (bare.mean != 0 and max(interval.width for interval in found) <= ROUNDING * abs(bare.mean)):
        return bare
    low, high = min(interval.low for interval in found), max(interval.high for interval in found)
    widest = max(found, key=lambda interval: interval.width)
    return replace(bare, low=low, high=high, p=float(max(interval.p for interval in found)), by=widest.by)


def _seeds(a: Mapping[str, object], b: Mapping[str, object]) -> tuple[list[str], list[str], bool]:
    """The seeds to use of either arm, and whether they are paired."""
    common = [seed for seed in a if seed in b]
    paired = len(common) >= 2 or (len(common) == 1 and min(len(a), len(b)) == 1)
    return (common, common, True) if paired else (list(a), list(b), False)


def _measured(values: Values) -> dict[str, dict[str, float]]:
    """Without values that are not finite, and without seeds that have none left."""
    return {seed: found for seed, row in values.items() if (found := _finite(row))}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _table(values: Values, seeds: Sequence[str], prompts: Sequence[str]) -> Array:
    """[seeds, prompts]"""
    return np.array([[values[seed][prompt] for prompt in prompts] for seed in seeds], dtype=np.float64)
