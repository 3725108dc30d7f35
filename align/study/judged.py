"""A declared contrast on the arms' values: its margin in its unit, and its verdict by its rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from align.refusals import ConfigError
from align.report import metrics
from align.report.arms import Arm
from align.report.metrics import Metric, prompt_values, sample_value, seed_values
from align.report.stats import at_step
from align.study import levels as of_levels
from align.study import rules
from align.study.rules import Observed, Verdict
from align.study.spec import START, Contrast

KNOWN = {metric.key: metric for metric in vars(metrics).values() if isinstance(metric, Metric)}
Arms = Mapping[str, Arm]
BEST = "the best earlier level"  # what a peak's last level is compared with


@dataclass(frozen=True)
class Judged:
    """A contrast with its verdict: `high` less `low`, seed by seed too."""

    title: str
    metric: Metric
    high: str
    low: str
    verdict: Verdict
    by_seed: Mapping[str, float]


def metric_of(key: str) -> Metric:
    return KNOWN.get(key, Metric(key, key))


def judge(title: str, asked: Contrast, arms: Arms) -> Judged:
    """A contrast by its rule."""
    metric = metric_of(asked.metric)
    margin = asked.margin * unit(asked.of, metric, arms[asked.treated if asked.base == START else asked.base])
    if asked.rule == "peak":
        levels = _steps(arms[asked.treated], metric, asked.along) if asked.along else _levels(asked, metric, arms)
        # no ring for a seed: the effect is from the best level, and that is chosen on half of the prompts
        return Judged(title, metric, asked.treated, BEST, _peak(levels, margin), {})
    if asked.levels:
        levels = _levels(asked, metric, arms)
        high, low = levels[max(levels)], levels[min(levels)]
        verdict = of_levels.dose(levels, asked.direction or 1, margin)
    else:
        high = observed(arms[asked.treated], metric, asked.at)
        start = asked.base == START
        low = observed(arms[asked.treated], metric, 0) if start else observed(arms[asked.base], metric, asked.at)
        equal = asked.rule == "equivalence"
        verdict = (
            rules.equivalence(high, low, margin) if equal else rules.effect(high, low, asked.direction or 1, margin)
        )
    return Judged(title, metric, asked.treated, asked.base, verdict, rules.by_seed(high, low))


def _levels(asked: Contrast, metric: Metric, arms: Arms) -> dict[float, Observed]:
    return {level: observed(arms[name], metric, asked.at) for name, level in asked.levels.items()}


def _steps(arm: Arm, metric: Metric, along: str) -> dict[float, Observed]:
    """An arm's steps as levels: each at the root of its KL, where R = d (a - b d) is a parabola (arXiv:2210.10760)."""
    found = {step: at_step(arm, step, along) for step in arm.steps}
    if any(kl is None or kl.mean < 0 for kl in found.values()):
        raise ConfigError(f"along={along}: arm {arm.label} does not measure it at every step")
    return {math.sqrt(kl.mean): observed(arm, metric, step) for step, kl in found.items() if kl}


def _peak(levels: Mapping[float, Observed], margin: float) -> Verdict:
    if not all(rules.per_prompt(values) for values in levels.values()):
        raise ConfigError("rule=peak: its metric has no value per prompt to choose the peak on one half and test it on "
                          "the other; name one that samples.jsonl has (docs/metrics.md)")  # fmt: skip
    return of_levels.peak(levels, margin)  # type: ignore[arg-type]


def observed(arm: Arm, metric: Metric, step: int | None = None) -> Observed:
    """Values per prompt where all seeds have them, else per seed; at the arm's end by default."""
    at = arm.end if step is None else step
    return prompt_values(arm, at, metric) or seed_values(arm, at, metric)


def unit(of: str, metric: Metric, arm: Arm) -> float:
    """What a margin is a multiple of: 1, the mean of step 0, or the standard deviation within a prompt there."""
    if of == "absolute":
        return 1.0
    if of == "base_mean":
        start = at_step(arm, 0, metric.key)
        return abs(start.mean) if start else math.nan
    squares, freedom = 0.0, 0
    for run in arm.seeds:
        groups: dict[str, list[float]] = {}
        for (prompt, _), row in run.samples.get(0, {}).items():
            if (value := sample_value(row, metric.sample_field)) is not None:
                groups.setdefault(prompt, []).append(value)
        for group in groups.values():
            mean = math.fsum(group) / len(group)
            squares += math.fsum((value - mean) ** 2 for value in group)
            freedom += len(group) - 1
    if not freedom:
        raise ConfigError(f"of=base_within_prompt_sd: {metric.key} has no two values to a prompt at step 0 of arm "
                          f"{arm.label}")  # fmt: skip
    return math.sqrt(squares / freedom)
