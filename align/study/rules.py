"""Verdict rules: values per seed and prompt -> CONFIRMED, REVERSED, EQUIVALENT, INCONCLUSIVE. Declared before any run.

    effect       V-EFF    the 95 % interval leaves out 0, |effect| >= margin, and all seeds agree in sign
    equivalence  V-NULL   the 90 % interval lies inside +-margin (two one-sided tests); "holds 0" is never "no effect"
    dose         V-DOSE   rank correlation over >= 4 levels by a permutation test, and the ends pass V-EFF
    peak         V-PEAK   an interior optimum, chosen on one half of the prompts and tested on the other
    exact        V-EXACT  closed forms within their tolerance

INVALID is for gates (align/study/verdict.py): here nobody knows what was measured. Intervals are those of
align/report/inference.py. An effect that misses its margin is EQUIVALENT where its 90 % interval lies inside, too.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from align.report.inference import LEVEL, Difference, Values, difference, holm, seed_difference
from align.study.power import would_settle

CONFIRMED, REVERSED, EQUIVALENT = "CONFIRMED", "REVERSED", "EQUIVALENT"
INCONCLUSIVE, INVALID = "INCONCLUSIVE", "INVALID"
OUTCOMES = (CONFIRMED, REVERSED, EQUIVALENT, INCONCLUSIVE, INVALID)
ALPHA, TOST = 0.05, 0.90
ENOUGH_SEEDS = 5  # with fewer the bootstrap under-covers, and three of three agree in sign by chance once in four times
DOSE_LEVELS, PERMUTATIONS = 4, 20_000
PEAK_AICC = -4.0
# Per prompt where the completions have the metric; {seed: value} of what only a whole probe has (distinct-2).
Observed = Values | Mapping[str, float]
Array = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Verdict:
    """What a rule says, and what it rests on. Of `exact` there is no effect, of a missing contrast no interval."""

    outcome: str
    provisional: bool  # fewer than 5 seeds
    effect: float | None
    low: float | None  # 95 %, whatever level the rule asked
    high: float | None
    p: float | None
    margin: float | None
    seeds: int
    agree: int  # seeds whose difference has the sign that most have
    reason: str
    power: str | None = None  # of an INCONCLUSIVE one: what would have been seen, and what would settle it


class Check(Protocol):
    """A closed form beside what was computed."""

    @property
    def name(self) -> str: ...
    @property
    def expected(self) -> float: ...
    @property
    def found(self) -> float: ...
    @property
    def tolerance(self) -> float: ...


def effect(high: Observed, low: Observed, direction: int, margin: float) -> Verdict:
    """V-EFF of high - low, expected to have the sign of `direction`."""
    found, agree = contrast(high, low), _agree(high, low)
    if found is None or found.low is None or found.high is None or found.seeds < 2:
        return _undecidable(found, margin, agree)
    bare = _verdict(found, margin, agree)
    sure = found.low > 0 or found.high < 0
    if sure and abs(found.mean) >= margin and agree == found.seeds:
        expected = found.mean * direction > 0
        said = f"the 95 % interval leaves out 0, the margin is met and all {found.seeds} seeds agree"
        way = "as claimed" if expected else "against the claim"
        return replace(bare, outcome=CONFIRMED if expected else REVERSED, reason=f"{way}: {said}")
    if _inside(high, low, margin):
        return replace(bare, outcome=EQUIVALENT, reason="the 90 % interval lies inside the margin")
    missing = [] if sure else ["the 95 % interval holds 0"]
    missing += [] if abs(found.mean) >= margin else ["the effect is below the margin, its 90 % interval is not"]
    missing += [] if agree == found.seeds else [f"only {agree} of {found.seeds} seeds agree in sign"]
    return replace(bare, reason="; ".join(missing), power=would_settle(high, low, found, margin))


def equivalence(a: Observed, b: Observed, margin: float) -> Verdict:
    """V-NULL of a - b: EQUIVALENT inside the margin, REVERSED where V-EFF finds a difference of at least the margin."""
    found = effect(a, b, 1, margin)
    if found.outcome in (CONFIRMED, REVERSED):
        return replace(found, outcome=REVERSED, reason=f"they differ: {found.reason.partition(': ')[2]}")
    return found


def no_loss(a: Observed, b: Observed, margin: float) -> Verdict:
    """One side of V-NULL: EQUIVALENT when a is at most `margin` below b, by the 90 % interval's lower end."""
    found, wide = contrast(a, b, TOST), contrast(a, b)
    if found is None or wide is None or found.low is None or found.high is None or found.seeds < 2:
        return _undecidable(wide, margin, _agree(a, b))
    bare = _verdict(wide, margin, _agree(a, b))
    if found.low > -margin:
        return replace(bare, outcome=EQUIVALENT, reason="a loss of the margin is excluded by the 90 % interval")
    if found.high < -margin:
        return replace(bare, outcome=REVERSED, reason="the loss is larger than the margin by the 90 % interval")
    reason = "the 90 % interval holds a loss of the margin"
    return replace(bare, reason=reason, power=would_settle(a, b, wide, margin))


def dose(levels: Mapping[float, Observed], direction: int, margin: float) -> Verdict:
    """V-DOSE: the ends' V-EFF, which counts only if the rank correlation over all levels has its sign and p < 0.05.

    Means of a seed are ranked over its levels; permuting them within seeds leaves out what seeds differ in.
    """
    assert len(levels) >= DOSE_LEVELS, f"V-DOSE needs {DOSE_LEVELS} levels or more, got {len(levels)}"
    steps = sorted(levels)
    ends = effect(levels[steps[-1]], levels[steps[0]], direction, margin)
    means = [_seed_means(levels[step]) for step in steps]
    seeds = [seed for seed in means[0] if all(seed in row for row in means)]
    if ends.outcome not in (CONFIRMED, REVERSED):
        return replace(ends, reason=f"the ends do not pass: {ends.reason}")
    rho, p = rank_correlation(np.array([[row[seed] for row in means] for seed in seeds]))
    said = f"rank correlation {rho:+.2f} over {len(steps)} levels, permutation p = {p:.2g}"
    if p < ALPHA and rho * (ends.effect or 0) > 0:
        return replace(ends, reason=f"{ends.reason}; {said}")
    return replace(ends, outcome=INCONCLUSIVE, reason=f"the ends differ, but no dose-response is shown: {said}")


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
    means = {step: float(np.mean([*_seed_means(_only(levels[step], chosen_on)).values()])) for step in steps[:-1]}
    top = max(means, key=lambda step: means[step])
    ends = effect(_only(levels[steps[-1]], tested_on), _only(levels[top], tested_on), -1, margin)
    where = f"the best level is {top:g}, chosen on {len(chosen_on)} prompts, tested on {len(tested_on)}"
    if ends.outcome != CONFIRMED:
        return replace(ends, reason=f"{where}: {ends.reason}")
    if top == steps[0]:
        return replace(ends, outcome=INCONCLUSIVE, reason=f"{where}: it falls from the first level on, no peak inside")
    delta = bent(levels)
    said = f"{where}; parabola against the best monotone fit: {delta:+.1f} AICc"
    if delta > PEAK_AICC:
        return replace(ends, outcome=INCONCLUSIVE, reason=f"{said}, must be <= {PEAK_AICC:g}")
    return replace(ends, reason=said)


def bent(levels: Mapping[float, Values]) -> float:
    """AICc of y = a x + b x^2 with its top inside the levels, less the best monotone fit's; inf without such a top.

        AICc = n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1),   y: means of seed and level, seeds' means taken away

    Monotone: a line, and a x / (x + s) that levels off at any s. Seeds' means and the variance count in k.
    """
    steps, rows = sorted(levels), [_seed_means(levels[step]) for step in sorted(levels)]
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


def exact(checks: Iterable[Check]) -> Verdict:
    """V-EXACT: CONFIRMED when every check holds, else REVERSED naming the first that does not."""
    checks = list(checks)
    wrong = [check for check in checks if not abs(check.found - check.expected) <= check.tolerance]  # NaN is wrong
    nothing = Verdict(INCONCLUSIVE, False, None, None, None, None, None, 0, 0, "there is no check")
    if not checks:
        return nothing
    if not wrong:
        return replace(nothing, outcome=CONFIRMED, reason=f"all {len(checks)} checks hold within their tolerances")
    one = wrong[0]
    said = f"{one.name}: expected {one.expected:.6g} +- {one.tolerance:.2g}, found {one.found:.6g}"
    return replace(nothing, outcome=REVERSED, reason=f"{len(wrong)} of {len(checks)} checks fail; {said}")


def corrected(verdicts: Mapping[K, Verdict]) -> dict[K, Verdict]:
    """Holm over a family of contrasts: p is the adjusted one, and what it does not carry is not decided."""
    adjusted = holm({key: verdict.p for key, verdict in verdicts.items()})
    return {key: _with_p(verdict, adjusted[key], len(verdicts)) for key, verdict in verdicts.items()}


def _with_p(verdict: Verdict, p: float | None, family: int) -> Verdict:
    if verdict.outcome not in (CONFIRMED, REVERSED) or p is None or p < ALPHA:
        return replace(verdict, p=p)
    return replace(verdict, p=p, outcome=INCONCLUSIVE, reason=f"not after Holm over {family} contrasts, p = {p:.2g}")


def contrast(a: Observed, b: Observed, level: float = LEVEL) -> Difference | None:
    """a - b by seeds and prompts where both have prompts, else by seeds."""
    if per_prompt(a) and per_prompt(b):
        return difference(a, b, level=level)  # type: ignore[arg-type]
    return seed_difference(_seed_means(a), _seed_means(b), level=level)


def per_prompt(values: Observed) -> bool:
    return any(isinstance(row, Mapping) for row in values.values())


def _seed_means(values: Observed) -> dict[str, float]:
    return {
        seed: float(np.mean([*row.values()])) if isinstance(row, Mapping) else float(row)
        for seed, row in values.items()
    }


def by_seed(a: Observed, b: Observed) -> dict[str, float]:
    """Each common seed's difference of means, for a figure."""
    left, right = _seed_means(a), _seed_means(b)
    return {seed: left[seed] - right[seed] for seed in left if seed in right}


def _only(values: Values, prompts: set[str]) -> Values:
    return {seed: {key: value for key, value in row.items() if key in prompts} for seed, row in values.items()}


def _agree(a: Observed, b: Observed) -> int:
    """Seeds of the sign that most have, of those in both; a difference of 0 has none."""
    differences = by_seed(a, b).values()
    return max(sum(d > 0 for d in differences), sum(d < 0 for d in differences))


def _inside(a: Observed, b: Observed, margin: float) -> bool:
    found = contrast(a, b, TOST)
    return found is not None and found.low is not None and found.high is not None and (
        -margin < found.low and found.high < margin
    )  # fmt: skip


def _verdict(found: Difference, margin: float, agree: int) -> Verdict:
    few = found.seeds < ENOUGH_SEEDS
    return Verdict(INCONCLUSIVE, few, found.mean, found.low, found.high, found.p, margin, found.seeds, agree, "")


def _undecidable(found: Difference | None, margin: float, agree: int) -> Verdict:
    """One seed says nothing of another; values without any spread say nothing of their error."""
    if found is None:
        return Verdict(
            INCONCLUSIVE, True, None, None, None, None, margin, 0, agree, "nothing was measured in both arms"
        )
    why = "one seed cannot say what another would give" if found.seeds < 2 else "the values have no spread to judge by"
    return replace(_verdict(found, margin, agree), reason=why, power="two seeds or more; five for a firm verdict")


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
