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


def would_settle(
    a: Values | Mapping[str, float], b: Values | Mapping[str, float], found: Difference, margin: float
) -> str:
    """Standard error, the least effect that would have been decided, and what would decide one as large as seen."""
    assert found.low is not None and found.high is not None
    least = max((found.high - found.low) / 2, margin)
    seeds, prompts = _variances(a, b, found)
    error = math.sqrt(seeds / found.seeds + prompts / max(1, found.prompts))
    said = f"standard error {error:.3g}; an effect of {least:.3g} would have been decided"
    return f"{said}; {_plan(seeds, prompts, found, margin)}"


def _plan(seeds: float, prompts: float, found: Difference, margin: float) -> str:
    """The fewest prompts, then seeds, whose interval leaves out 0 (or, of a small effect, lies inside the margin)."""
    small = abs(found.mean) < margin
    room, level = (margin - abs(found.mean), 0.95) if small else (abs(found.mean), 0.975)
    what = "to call it none" if small else "to decide an effect as large as seen"
    for doubling in range(MOST_DOUBLINGS + 1 if found.prompts else 1):
        X = max(1, found.prompts) * 2**doubling
        for S in range(max(2, found.seeds), MOST_SEEDS + 1):
            if stdtrit(S - 1, level) * math.sqrt(seeds / S + prompts / X) < room:
                return f"about {S} seeds{f' on {X} prompts' if found.prompts else ''} {what}"
    return f"more than {MOST_SEEDS} seeds {what}"


def _variances(
    a: Values | Mapping[str, float], b: Values | Mapping[str, float], found: Difference
) -> tuple[float, float]:
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
