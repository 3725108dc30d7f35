"""Verdict rules: values per seed and prompt -> CONFIRMED, REVERSED, EQUIVALENT, INCONCLUSIVE. Declared before any run.

    effect       V-EFF    the 95 % interval leaves out 0, |effect| >= margin, and all seeds agree in sign
    equivalence  V-NULL   the 90 % interval lies inside +-margin (two one-sided tests); "holds 0" is never "no effect"
    exact        V-EXACT  closed forms within their tolerance
    dose, peak   V-DOSE, V-PEAK over levels: align/study/levels.py

INVALID is for gates (align/study/verdict.py): here nobody knows what was measured. Intervals are those of
align/report/inference.py. An effect that misses its margin is EQUIVALENT where its 90 % interval lies inside, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from align.report.inference import LEVEL, Difference, Values, difference, holm, seed_difference
from align.study.power import would_exclude, would_settle

CONFIRMED, REVERSED, EQUIVALENT = "CONFIRMED", "REVERSED", "EQUIVALENT"
INCONCLUSIVE, INVALID = "INCONCLUSIVE", "INVALID"
OUTCOMES = (CONFIRMED, REVERSED, EQUIVALENT, INCONCLUSIVE, INVALID)
ALPHA, TOST = 0.05, 0.90
ENOUGH_SEEDS = 5  # with fewer the bootstrap under-covers, and three of three agree in sign by chance once in four times
# Per prompt where the completions have the metric; {seed: value} of what only a whole probe has (distinct-2).
Observed = Values | Mapping[str, float]
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
    agree: int  # seeds whose difference has the sign of the effect
    reason: str
    power: str | None = None  # of an INCONCLUSIVE one: what would have been seen, and what would settle it
    prompts: int = 0  # that the interval is over, beside the seeds; 0: of seeds alone, the prompts taken as given


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
    found = contrast(high, low)
    agree = _agree(high, low, found)
    if found is None or found.low is None or found.high is None or found.seeds < 2 or found.low == found.high:
        return _undecidable(found, margin, agree)
    bare = _verdict(found, margin, agree)
    sure = found.low > 0 or found.high < 0
    if sure and abs(found.mean) >= margin and agree == found.seeds:
        expected = found.mean * direction > 0
        said = f"the 95 % interval leaves out 0, the margin is met and all {found.seeds} seeds agree"
        way = "as claimed" if expected else "against the claim"
        return replace(bare, outcome=CONFIRMED if expected else REVERSED, reason=f"{way}: {said}")
    if inside(high, low, margin):
        return replace(bare, outcome=EQUIVALENT, reason="the 90 % interval lies inside the margin")
    missing = [] if sure else ["the 95 % interval holds 0"]
    missing += [] if abs(found.mean) >= margin else ["the effect is below the margin, its 90 % interval is not"]
    missing += [] if agree == found.seeds else [f"only {agree} of {found.seeds} seeds agree in sign"]
    return replace(bare, reason="; ".join(missing), power=would_settle(high, low, found, margin, agree))


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
        return _undecidable(wide, margin, _agree(a, b, wide))
    bare = _verdict(wide, margin, _agree(a, b, wide))
    if found.low > -margin:
        return replace(bare, outcome=EQUIVALENT, reason="a loss of the margin is excluded by the 90 % interval")
    if found.high < -margin:
        return replace(bare, outcome=REVERSED, reason="the loss is larger than the margin by the 90 % interval")
    reason = "the 90 % interval holds a loss of the margin"
    return replace(bare, reason=reason, power=would_exclude(a, b, wide, margin))


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
    return seed_difference(seed_means(a), seed_means(b), level=level)


def per_prompt(values: Observed) -> bool:
    return any(isinstance(row, Mapping) for row in values.values())


def seed_means(values: Observed) -> dict[str, float]:
    return {
        seed: float(np.mean([*row.values()])) if isinstance(row, Mapping) else float(row)
        for seed, row in values.items()
    }


def by_seed(a: Observed, b: Observed) -> dict[str, float]:
    """Each common seed's difference of means, for a figure."""
    left, right = seed_means(a), seed_means(b)
    return {seed: left[seed] - right[seed] for seed in left if seed in right}


def _agree(a: Observed, b: Observed, found: Difference | None) -> int:
    """Seeds in both whose difference has the sign of the whole; a difference of 0 has none."""
    return 0 if found is None else sum(d * found.mean > 0 for d in by_seed(a, b).values())


def inside(a: Observed, b: Observed, margin: float) -> bool:
    found = contrast(a, b, TOST)
    return found is not None and found.low is not None and found.high is not None and (
        -margin < found.low and found.high < margin
    )  # fmt: skip


def _verdict(found: Difference, margin: float, agree: int) -> Verdict:
    few = found.seeds < ENOUGH_SEEDS
    interval = found.low, found.high, found.p
    return Verdict(INCONCLUSIVE, few, found.mean, *interval, margin, found.seeds, agree, "", None, found.prompts)


def _undecidable(found: Difference | None, margin: float, agree: int) -> Verdict:
    """One seed says nothing of another; values without any spread say nothing of their error."""
    if found is None:
        return Verdict(
            INCONCLUSIVE, True, None, None, None, None, margin, 0, agree, "nothing was measured in both arms"
        )
    bare = _verdict(found, margin, agree)
    if found.seeds < 2:
        why, plan = "one seed cannot say what another would give", "two seeds or more; five for a firm verdict"
        return replace(bare, reason=why, power=plan)
    if found.low == found.high == 0:  # both at a floor or a ceiling, or one arm twice
        return replace(bare, reason="both arms are the same in every seed and prompt, which shows no more than that")
    return replace(bare, reason="the values have no spread to judge by")
