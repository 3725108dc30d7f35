"""Means and changes with 95% intervals. Student's t throughout: few seeds, and no claim beyond what they carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from align.report.arms import Arm, SeedRun

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and its 95% interval; low and high are None where n = 1 leaves nothing to estimate it from."""

    mean: float
    low: float | None
    high: float | None
    n: int
    over: str  # what the n values are: "seeds" or "prompts"

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def t_interval(values: Sequence[float], over: str = "seeds") -> Estimate:
    """mean ± t(0.975, n - 1) s / sqrt(n), with s the sample standard deviation (n - 1 in its denominator)."""
    n, center = len(values), fmean(values)
    if n == 1:
        return Estimate(center, None, None, 1, over)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(center, center - half, center + half, n, over)


def at_step(arm: Arm, step: int | None, key: str) -> Estimate | None:
    """Mean and interval at a step, over the seeds that reached the arm's end. None where none logged the key."""
    values = [value for run in arm.at_end if step is not None and (value := run.value(step, key)) is not None]
    return t_interval(values) if values else None


def change(arm: Arm, key: str, sample_field: str) -> Estimate | None:
    """End minus step 0 of a probe key.

    With two seeds or more: t-interval over the seeds' own changes. With one: over the prompts' changes, when
    samples.jsonl holds both ends under `sample_field`; otherwise the bare difference. None where an end is missing.
    """
    pairs = [(run.value(0, key), run.value(arm.end or 0, key), run) for run in arm.at_end]
    changes = [(end - start, run) for start, end, run in pairs if start is not None and end is not None]
    if not changes or arm.end == 0:
        return None
    if len(changes) == 1:
        difference, run = changes[0]
        return _over_prompts(run, sample_field) or Estimate(difference, None, None, 1, "seeds")
    return t_interval([difference for difference, _ in changes])


def _over_prompts(run: SeedRun, field: str) -> Estimate | None:
    if run.last is None or not {0, run.last} <= set(run.samples):
        return None
    start, end = prompt_means(run.samples[0], field), prompt_means(run.samples[run.last], field)
    differences = [end[prompt] - start[prompt] for prompt in start if prompt in end]
    return t_interval(differences, "prompts") if len(differences) >= 2 else None


def prompt_means(rows: Mapping[tuple[str, int], Mapping[str, Any]], field: str) -> dict[str, float]:
    """Prompt id -> mean of a field over the completions of that prompt.

    Completions of one prompt are not independent of each other, so the prompt is the unit of the interval.
    """
    values: dict[str, list[float]] = {}
    for (prompt, _), row in rows.items():
        if isinstance(row.get(field), int | float):
            values.setdefault(prompt, []).append(row[field])
    return {prompt: fmean(group) for prompt, group in values.items()}
