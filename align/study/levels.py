"""Verdict rules over levels of one setting, or the steps of one arm.

dose   V-DOSE   rank correlation over >= 4 levels by a permutation test, and the ends pass V-EFF
peak   V-PEAK   an interior optimum, chosen on one half of the prompts and tested on the other
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from align.report.inference import Values
from align.study.rules import (
    ALPHA,
    CONFIRMED,
    EQUIVALENT,
    INCONCLUSIVE,
    REVERSED,
    Observed,
    Verdict,
    effect,
    inside,
    seed_means,
)

DOSE_LEVELS, PERMUTATIONS = 4, 20_000
PEAK_AICC = -4.0
Array = NDArray[np.float64]


def dose(levels: Mapping[float, Observed], direction: int, margin: float) -> Verdict:
    """V-DOSE: the ends' V-EFF, which counts only if the rank correlation over all levels has its sign and p < 0.05.

    Means of a seed are ranked over its levels; permuting them within seeds leaves out what seeds differ in. Both must
    hold, so the p of both is the larger one. EQUIVALENT: every level lies inside the margin of the first.
    """
    assert len(levels) >= DOSE_LEVELS, f"V-DOSE needs {DOSE_LEVELS} levels or more, got {len(levels)}"
    steps = sorted(levels)
    ends = effect(levels[steps[-1]], levels[steps[0]], direction, margin)
    means = [seed_means(levels[step]) for step in steps]
    seeds = [seed for seed in means[0] if all(seed in row for row in means)]
    if ends.outcome == EQUIVALENT:
        return _flat(levels, steps, margin, ends)
    if ends.outcome not in (CONFIRMED, REVERSED):
        return replace(ends, reason=f"the ends do not pass: {ends.reason}")
    rho, p = rank_correlation(np.array([[row[seed] for row in means] for seed in seeds]))
    said = f"rank correlation {rho:+.2f} over {len(steps)} levels, permutation p = {p:.2g}"
    ends = replace(ends, p=max(ends.p or 0.0, p))
    if p < ALPHA and rho * (ends.effect or 0) > 0:
        return replace(ends, reason=f"{ends.reason}; {said}")
    return replace(ends, outcome=INCONCLUSIVE, reason=f"the ends differ, but no dose-response is shown: {said}")


def _flat(levels: Mapping[float, Observed], steps: Sequence[float], margin: float, ends: Verdict) -> Verdict:
    """Equal ends are no word on what lies between them."""
    beyond = [step for step in steps[1:-1] if not inside(levels[step], levels[steps[0]], margin)]
    if not beyond:
        return replace(ends, reason=f"{ends.reason} at all {len(steps)} levels")
    said = f"the ends are equal, but not shown to be so: the levels {', '.join(f'{step:g}' for step in beyond)}"
    return replace(ends, outcome=INCONCLUSIVE, reason=said)


def rank_correlation(table: Array) -> tuple[float, float]:
    """[seeds, levels] -> mean over seeds of Spearman's rho with the level's number, and its two-sided p.

    p from permuting each seed's values on its own; never below 1 / (PERMUTATIONS + 1).
    """
    ranks = rankdata(table, axis=1) - (table.shape[1] + 1) / 2
    level = np.arange(table.shape[1]) - (table.shape[1] - 1) / 2
    spread = np.sqrt((ranks**2).sum(1) * (level**2).sum())
    unit = np.divide(ranks, spread[:, None], out=np.zeros_like(ranks), where=spread[:, None] > 0)
    rho = float((unit @ level).mean())
    rng = np.random.default_rng(table.shape)  # by the shape alone: the same verdict twice
    drawn = sum(rng.permuted(np.tile(row, (PERMUTATIONS, 1)), axis=1) @ level for row in unit) / len(unit)
    beyond = np.count_nonzero(np.abs(drawn) >= abs(rho) - 1e-12)
    return rho, float((beyond + 1) / (PERMUTATIONS + 1))


def peak(levels: Mapping[float, Values], margin: float) -> Verdict:
    """V-PEAK: last level - best level, the best chosen among the others on every second prompt, tested on the rest.

    CONFIRMED: V-EFF says the end is lower, the best level is not the first, and a parabola with its top inside fits the
    curve better than what is monotone (`bent`). REVERSED: V-EFF says the end is higher, so nothing has turned yet.
    """
    steps = sorted(levels)
    assert len(steps) >= 3, f"a peak inside needs three levels or more, got {len(steps)}"
    prompts = sorted({prompt for values in levels.values() for row in values.values() for prompt in row})
    chosen_on, tested_on = set(prompts[::2]), set(prompts[1::2])
    means = {step: float(np.mean([*seed_means(_only(levels[step], chosen_on)).values()])) for step in steps[:-1]}
    top = max(means, key=lambda step: means[step])
    ends = effect(_only(levels[steps[-1]], tested_on), _only(levels[top], tested_on), -1, margin)
    where = f"the best level is {top:g}, chosen on {len(chosen_on)} prompts, tested on {len(tested_on)}"
    if ends.outcome != CONFIRMED:
        return replace(ends, reason=f"{where}: {ends.reason}")
    if top == steps[0]:
        return replace(ends, outcome=INCONCLUSIVE, reason=f"{where}: it falls from the first level on, no peak inside")
    delta = bent(levels)
    said = f"{where}; parabola against the best monotone fit: {delta:+.1f} AICc"
    if not delta <= PEAK_AICC:  # too few seeds and levels for either fit: inf - inf
        return replace(ends, outcome=INCONCLUSIVE, reason=f"{said}, must be <= {PEAK_AICC:g}")
    return replace(ends, reason=said)


def bent(levels: Mapping[float, Values]) -> float:
    """AICc of y = a x + b x^2 with its top inside the levels, less the best monotone fit's; inf without such a top.

        AICc = n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1),   y: means of seed and level, seeds' means taken away

    Monotone: a line, and a x / (x + s) that levels off at any s. Seeds' means and the variance count in k.
    """
    steps, rows = sorted(levels), [seed_means(levels[step]) for step in sorted(levels)]
    seeds = [seed for seed in rows[0] if all(seed in row for row in rows)]
    y = np.array([[row[seed] for row in rows] for seed in seeds])
    x = np.array(steps, dtype=np.float64) - steps[0]
    y = y - y.mean(1, keepdims=True)
    a, b = np.polynomial.polynomial.polyfit(np.tile(x, len(seeds)), y.ravel(), 2)[1:]
    if not (b < 0 and 0 < -a / (2 * b) < x[-1]):
        return math.inf
    shared = len(seeds) + 1
    levelling = min(_rss([x / (x + s)], y) for s in np.geomspace(x[1] / 10, x[-1] * 10, 50))
    monotone = min(_aicc(_rss([x], y), y.size, shared + 1), _aicc(levelling, y.size, shared + 2))
    return _aicc(_rss([x, x**2], y), y.size, shared + 2) - monotone


def _rss(columns: Sequence[Array], y: Array) -> float:
    """Least squares of y [seeds, levels] on columns [levels], both without their means over levels."""
    design = np.stack([column - column.mean() for column in columns], 1)
    mean = y.mean(0)
    fitted = design @ np.linalg.lstsq(design, mean, rcond=None)[0]
    return float(((y - fitted) ** 2).sum())


def _aicc(rss: float, n: int, k: int) -> float:
    if n - k - 1 <= 0:  # more to fit than values: no fit can be called better
        return math.inf
    return n * math.log(max(rss, 1e-300) / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _only(values: Values, prompts: set[str]) -> Values:
    return {seed: {key: value for key, value in row.items() if key in prompts} for seed, row in values.items()}
