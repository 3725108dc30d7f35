"""What a trained study has found, from its run directories alone: gates, contrasts, controls, cures, by its rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.refusals import ConfigError
from align.report import metrics
from align.report.arms import NOT_THE_EXPERIMENT, Arm, SeedRun, flatten, load
from align.report.metrics import Metric, prompt_values, sample_value, seed_values
from align.report.stats import at_step
from align.study import rules
from align.study.engine import Plan, Task
from align.study.rules import Observed, Verdict
from align.study.spec import START, Contrast, Study

KNOWN = {metric.key: metric for metric in vars(metrics).values() if isinstance(metric, Metric)}
Arms = Mapping[str, Arm]
BEST = "the best earlier level"  # what a peak's last level is compared with
GATE = "gate "  # how a note of the data that tells of a failed gate begins


@dataclass(frozen=True)
class Judged:
    """A contrast with its verdict: `high` less `low`, seed by seed too."""

    title: str
    metric: Metric
    high: str
    low: str
    verdict: Verdict
    by_seed: Mapping[str, float]


@dataclass(frozen=True)
class Cured:
    """A mitigation: what it does to the effect, and what it costs. `works` is None where there is nothing to cure."""

    arm: str
    removal: Judged
    removed: float | None  # share of the effect
    cost: Judged
    works: bool | None


@dataclass(frozen=True)
class Gate:
    arm: str
    key: str
    low: float
    high: float
    value: float | None

    @property
    def passed(self) -> bool:
        return self.value is not None and self.low <= self.value <= self.high


@dataclass(frozen=True)
class Found:
    """Everything a trained study has found."""

    arms: Arms
    primary: Judged
    verdict: Verdict  # the primary's, or INVALID
    gates: tuple[Gate, ...]
    secondary: tuple[Judged, ...]
    controls: tuple[Judged, ...]
    cured: tuple[Cured, ...]
    screen: bool = False  # of a tier that only screens the claim, with too few seeds to decide it all the same


def examine(study: Study, arms: Arms) -> Found:
    """Apply the declared rules. Raises ConfigError where an arm does not measure what the study is about."""
    primary, secondary = study.primary, study.secondary or {}
    assert primary is not None
    _refuse_unmeasured(arms, {"primary": primary, **{f"secondary.{name}": one for name, one in secondary.items()}})
    main = judge("primary", primary, arms)
    others = [judge(name, one, arms) for name, one in secondary.items()]
    controls = [judge(name, _in_place(primary, name), arms) for name in study.of_role("control")]
    kept = rules.corrected({index: one.verdict for index, one in enumerate(others)})
    gates = tuple(
        Gate(name, key, *limits, _end(arms[name], key))
        for name in study.of_role("arm") for key, limits in (study.gates or {}).get(name, {}).items()
    )  # fmt: skip
    return Found(
        arms, main, _valid(main.verdict, gates, controls, _pools(arms)), gates,
        tuple(replace(one, verdict=kept[index]) for index, one in enumerate(others)),
        tuple(controls), _cures(study, arms, main),
    )  # fmt: skip


def screened(chosen: Plan, found: Found) -> Found:
    """What a screening tier has decided with few seeds is held back: what was seen becomes the reason."""
    verdict, deciding = found.verdict, [tier for tier in chosen.study.tiers or () if tier not in chosen.study.screen]
    if not (chosen.screens and verdict.provisional):
        return found
    if verdict.outcome in (rules.INCONCLUSIVE, rules.INVALID):
        return replace(found, screen=True)
    seen = f"{verdict.outcome} was seen with {verdict.seeds} seeds ({verdict.reason})"
    reason = f"screen: {seen}; what decides the claim is tier {' or '.join(deciding)}"
    return replace(found, screen=True, verdict=replace(verdict, outcome=rules.INCONCLUSIVE, reason=reason))


def read_arms(tasks: Sequence[Task], paths: Sequence[Path]) -> Arms:
    """The study's arms from finished runs."""
    by_arm: dict[str, list[SeedRun]] = {}
    for task, run in zip(tasks, load(paths), strict=True):
        by_arm.setdefault(task.arm, []).append(run)
    return assemble(by_arm)


def assemble(by_arm: Mapping[str, Sequence[SeedRun]]) -> Arms:
    """Arms as the study names them. Their looks in figures: trained arms count up from 0, baselines down from -1."""
    made: dict[str, Arm] = {}
    for name, runs in by_arm.items():
        config = {k: v for k, v in flatten(runs[0].record.config).items() if k not in NOT_THE_EXPERIMENT}
        arm = Arm(name, config, tuple(runs))
        trained = sum(other.trained for other in made.values())
        made[name] = replace(arm, style=trained if arm.trained else trained - len(made) - 1)
    return made


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
        verdict = rules.dose(levels, asked.direction or 1, margin)
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
    return rules.peak(levels, margin)  # type: ignore[arg-type]


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


def _in_place(primary: Contrast, control: str) -> Contrast:
    """The primary contrast with a negative control where the arm that should differ stands; of levels, the ends."""
    return Contrast(primary.metric, "effect", primary.margin, primary.of, primary.direction or 1, control, primary.base,
                    {}, primary.at)  # fmt: skip


def _pools(arms: Arms) -> list[str]:
    """Gates of the data that failed, as the runs noted them (reward_models/gates.py)."""
    noted = (run.record.meta.get("data_notes", ()) for arm in arms.values() for run in arm.seeds)
    return sorted({note for notes in noted for note in notes if note.startswith(GATE)})


def _valid(verdict: Verdict, gates: Sequence[Gate], controls: Sequence[Judged], pools: Sequence[str]) -> Verdict:
    """INVALID when a gate fails, of the data or at an arm's end, or a negative control shows the effect."""
    wrong = [*pools]
    wrong += [
        f"gate {gate.key} of arm {gate.arm}: {_said(gate.value)}, must be within [{gate.low:g}, {gate.high:g}]"
        for gate in gates if not gate.passed
    ]  # fmt: skip
    wrong += [
        f"the negative control {one.title} shows the effect: {_said(one.verdict.effect)} (must not be CONFIRMED)"
        for one in controls if one.verdict.outcome == rules.CONFIRMED
    ]  # fmt: skip
    if not wrong:
        return verdict
    return replace(verdict, outcome=rules.INVALID, reason="; ".join(wrong), power=None)


def _said(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _cures(study: Study, arms: Arms, main: Judged) -> tuple[Cured, ...]:
    """Each mitigation against the arm it cures, on the effect and on the cost; the removals are a family for Holm."""
    cure, primary = study.cure, study.primary
    if cure is None or primary is None:
        return ()
    other = cure.well or (primary.base if cure.arm == primary.treated else primary.treated)
    ill = observed(arms[cure.arm], main.metric)
    well = observed(arms[cure.arm], main.metric, 0) if other == START else observed(arms[other], main.metric)
    away = rules.contrast(well, ill)
    effect = away.mean if away else 0.0
    removals, costs = {}, {}
    cost = metric_of(cure.cost.metric)
    allowed = cure.cost.margin * unit(cure.cost.of, cost, arms[cure.arm])
    for name in study.of_role("mitigation"):
        treated = observed(arms[name], main.metric)
        removals[name] = rules.effect(treated, ill, 1 if effect > 0 else -1, cure.removes * abs(effect))
        costs[name] = rules.no_loss(observed(arms[name], cost), observed(arms[cure.arm], cost), allowed)
    removals = rules.corrected(removals)
    shown = main.verdict.outcome in (rules.CONFIRMED, rules.REVERSED)
    made = []
    for name, removal in removals.items():
        by_seed = rules.by_seed(observed(arms[name], main.metric), ill)
        cost_by_seed = rules.by_seed(observed(arms[name], cost), observed(arms[cure.arm], cost))
        works = removal.outcome == rules.CONFIRMED and costs[name].outcome == rules.EQUIVALENT
        share = removal.effect / effect if removal.effect is not None and effect else None
        made.append(Cured(
            name, Judged(name, main.metric, name, cure.arm, removal, by_seed), share,
            Judged(name, cost, name, cure.arm, costs[name], cost_by_seed), works if shown else None,
        ))  # fmt: skip
    return tuple(made)


def _end(arm: Arm, key: str) -> float | None:
    found = at_step(arm, arm.end, key)
    return None if found is None else found.mean


def _refuse_unmeasured(arms: Arms, asked: Mapping[str, Contrast]) -> None:
    for where, one in asked.items():
        for name in one.arms:
            if not arms[name].logs(one.metric):
                keys = sorted({k for run in arms[name].seeds for row in run.probes.values() for k in row if "/" in k})
                raise ConfigError(f"{where}.metric={one.metric}: arm {name} does not measure it; it has "
                                  f"{', '.join(keys)}")  # fmt: skip
