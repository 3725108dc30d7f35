"""Means over seeds with 95% t-intervals: bands, bars, brackets. What is claimed of differences: claims.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from align.report.arms import Arm
from align.report.inference import LEVEL, student


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and its 95% interval; low and high are None where n = 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


def mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def t_interval(values: Sequence[float]) -> Estimate:
    """mean ± t(0.975, n - 1) s / sqrt(n), with s the sample standard deviation (n - 1 in its denominator)."""
    n, center = len(values), fmean(values)
    if n == 1:
        return Estimate(center, None, None, 1)
    found = student([np.asarray(values, dtype=np.float64)], LEVEL, "seeds")
    return Estimate(center, found.low, found.high, n)


def at_step(arm: Arm, step: int | None, key: str) -> Estimate | None:
    """Mean and interval at a step, over the seeds that reached the arm's end. None where none logged the key."""
    values = [value for run in arm.at_end if step is not None and (value := run.value(step, key)) is not None]
    return t_interval(values) if values else None
