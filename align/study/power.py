"""What an undecided contrast could have seen, and how many seeds and prompts would settle it.

    error(S, X)^2 = seeds^2 / S + prompts^2 / X      seeds^2: variance of the seeds' means; prompts^2: the prompts' own

A planning figure, by normal theory and from the spread of the few seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import stdtrit

from align.report.inference import Difference, Values

MOST_SEEDS, MOST_DOUBLINGS = 50, 6
Observed = Values | Mapping[str, float]


def would_settle(a: Observed, b: Observed, found: Difference, margin: float, agree: int) -> str:
    """Standard error, the least effect that would have been decided, and what would decide one as large as seen: its
    interval would then leave out 0, or of a small effect lie inside the margin, in every second repetition."""
    assert found.low is not None and found.high is not None
    small, split = abs(found.mean) < margin, agree < found.seeds
    least = max((found.high - found.low) / 2, margin)
    decided = "" if split else f"; an effect of {least:.3g} would have been decided"
    if split and not small:
        return f"{_error(a, b, found)}; seeds must agree in sign, which more of them beside these cannot mend"
    room, level = (margin - abs(found.mean), 0.95) if small else (abs(found.mean), 0.975)
    what = "to call it none" if small else "to decide an effect as large as seen"
    return f"{_error(a, b, found)}{decided}; {_plan(*_variances(a, b, found), found, room, level, what)}"


def would_exclude(a: Observed, b: Observed, found: Difference, margin: float) -> str:
    """The same for a loss of the margin, which is looked for on one side only."""
    gained = found.mean + margin  # from the loss that is to be excluded
    what = "to exclude it" if gained > 0 else "to show a larger one"
    return f"{_error(a, b, found)}; {_plan(*_variances(a, b, found), found, abs(gained), 0.95, what)}"


def _error(a: Observed, b: Observed, found: Difference) -> str:
    seeds, prompts = _variances(a, b, found)
    return f"standard error {math.sqrt(seeds / found.seeds + prompts / max(1, found.prompts)):.3g}"


def _plan(seeds: float, prompts: float, found: Difference, room: float, level: float, what: str) -> str:
    """The fewest prompts, then seeds, whose interval is no wider on one side than `room`."""
    for doubling in range(MOST_DOUBLINGS + 1 if found.prompts else 1):
        X = max(1, found.prompts) * 2**doubling
        for S in range(max(2, found.seeds), MOST_SEEDS + 1):
            if stdtrit(S - 1, level) * math.sqrt(seeds / S + prompts / X) < room:
                return f"about {S} seeds{f' on {X} prompts' if found.prompts else ''} {what} (even odds)"
    return f"more than {MOST_SEEDS} seeds {what}"


def _variances(a: Observed, b: Observed, found: Difference) -> tuple[float, float]:
    """(variance of the seeds' means, variance of the prompts' own) of the paired differences."""
    common = [seed for seed in a if seed in b]
    if not found.prompts or not found.paired or len(common) < 2:
        half = (found.high - found.low) / 2 if found.low is not None and found.high is not None else math.inf
        return found.seeds * float(half / stdtrit(max(1, found.seeds - 1), 0.975)) ** 2, 0.0
    rows = [(a[seed], b[seed]) for seed in common]
    shared = [x for x in rows[0][0] if all(x in one and x in other for one, other in rows)]  # type: ignore[union-attr,operator]
    d = np.array([[one[x] - other[x] for x in shared] for one, other in rows])  # type: ignore[index]
    S, X = d.shape
    residuals = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    rest = float((residuals**2).sum()) / max(1, (S - 1) * (X - 1))
    own = float(d.mean(0).var(ddof=1)) - rest / S if X > 1 else 0.0
    return float(d.mean(1).var(ddof=1)), max(0.0, own)
