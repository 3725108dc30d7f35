"""What a trained study has found, from its run directories alone: gates, contrasts, controls, cures, by its rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.refusals import ConfigError
from align.report.arms import Arm, SeedRun, experiment, load
from align.report.stats import at_step
from align.rows import RunError
from align.study import rules
from align.study.cures import Cured, cures
from align.study.engine import Plan, Task
from align.study.judged import Arms, Judged, judge
from align.study.rules import Verdict
from align.study.spec import Contrast, Study

GATE = "gate "  # how a note of the data that tells of a failed gate begins


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
    controls = [judge(name, in_place(primary, name), arms) for name in study.of_role("control")]
    kept = rules.corrected({index: one.verdict for index, one in enumerate(others)})
    gates = tuple(
        Gate(name, key, *limits, _end(arms[name], key))
        for name in study.of_role("arm") for key, limits in (study.gates or {}).get(name, {}).items()
    )  # fmt: skip
    verdict = _valid(main.verdict, gates, controls, [*_pools(arms), *lost(primary, arms)])
    decided = [_whole(kept[index], secondary[one.title], arms) for index, one in enumerate(others)]
    found = Found(
        arms, main, verdict, gates,
        tuple(replace(one, verdict=its) for one, its in zip(others, decided, strict=True)),
        tuple(controls), cures(study, arms, main, verdict.outcome == rules.CONFIRMED),
    )  # fmt: skip
    return held_back(found, "the study is INVALID") if verdict.outcome == rules.INVALID else found


def screened(chosen: Plan, found: Found) -> Found:
    """What a screening tier has decided with few seeds is held back: what was seen becomes the reason."""
    verdict, deciding = found.verdict, [tier for tier in chosen.study.tiers or () if tier not in chosen.study.screen]
    if not (chosen.screens and verdict.provisional):
        return found
    found = replace(held_back(found, "screen"), screen=True)
    if verdict.outcome in (rules.INCONCLUSIVE, rules.INVALID):
        return found
    said = _undecided(verdict, "screen")
    reason = f"{said.reason}; what decides the claim is tier {' or '.join(deciding)}"
    return replace(found, verdict=replace(said, reason=reason))


def held_back(found: Found, why: str) -> Found:
    """No contrast of a study that decides nothing decides anything, and nothing is shown that could be cured."""
    return replace(
        found,
        primary=replace(found.primary, verdict=_undecided(found.primary.verdict, why)),
        secondary=tuple(replace(one, verdict=_undecided(one.verdict, why)) for one in found.secondary),
        cured=tuple(replace(one, works=None) for one in found.cured),
    )


def _undecided(verdict: Verdict, why: str) -> Verdict:
    if verdict.outcome == rules.INCONCLUSIVE:
        return verdict
    seen = f"{verdict.outcome} was seen with {verdict.seeds} seeds ({verdict.reason})"
    return replace(verdict, outcome=rules.INCONCLUSIVE, reason=f"{why}: {seen}")


def read_arms(tasks: Sequence[Task], paths: Sequence[Path]) -> Arms:
    """The study's arms from finished runs. Raises RunError for a run that is damaged, in what no number is from too."""
    by_arm: dict[str, list[SeedRun]] = {}
    for task, run in zip(tasks, load(paths), strict=True):
        if run.unread:  # a page says so and goes on; a verdict over fewer prompts would be another
            raise RunError(run.unread[0])
        by_arm.setdefault(task.arm, []).append(run)
    return assemble(by_arm)


def assemble(by_arm: Mapping[str, Sequence[SeedRun]]) -> Arms:
    """Arms as the study names them. Their looks in figures: trained arms count up from 0, baselines down from -1."""
    made: dict[str, Arm] = {}
    for name, runs in by_arm.items():
        arm = Arm(name, experiment(runs[0].record.config), tuple(runs))
        trained = sum(other.trained for other in made.values())
        made[name] = replace(arm, style=trained if arm.trained else trained - len(made) - 1)
    return made


def in_place(primary: Contrast, control: str) -> Contrast:
    """The primary contrast with a negative control where the arm that should differ stands: of a dose the ends, of a
    peak its last level, or all steps of the control."""
    if primary.rule == "peak" and primary.along:
        return replace(primary, high=control)
    if primary.rule == "peak":
        levels = {control if name == primary.treated else name: level for name, level in primary.levels.items()}
        return replace(primary, levels=levels)
    return replace(primary, rule="effect", direction=primary.direction or 1, high=control, low=primary.base, levels={})


def lost(asked: Contrast, arms: Arms) -> list[str]:
    """Seeds of a contrast's arms that have no finite value: without them it would be of other seeds than declared."""
    found = []
    for arm in (arms[name] for name in asked.arms):
        at = arm.end if asked.at is None else asked.at
        missing = [str(run.seed) for run in arm.seeds if at is None or run.value(at, asked.metric) is None]
        if missing:
            found.append(f"{asked.metric} of arm {arm.label} has no finite value in seed {', '.join(missing)}")
    return found


def _whole(verdict: Verdict, asked: Contrast, arms: Arms) -> Verdict:
    missing = lost(asked, arms)
    return _undecided(verdict, "; ".join(missing)) if missing else verdict


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


def _end(arm: Arm, key: str) -> float | None:
    """The mean over seeds; None unless every seed has a finite value."""
    found = at_step(arm, arm.end, key)
    return None if found is None or found.n < len(arm.seeds) else found.mean


def _refuse_unmeasured(arms: Arms, asked: Mapping[str, Contrast]) -> None:
    for where, one in asked.items():
        for name in one.arms:
            if not arms[name].logs(one.metric):
                keys = sorted({k for run in arms[name].seeds for row in run.probes.values() for k in row if "/" in k})
                raise ConfigError(f"{where}.metric={one.metric}: arm {name} does not measure it; it has "
                                  f"{', '.join(keys)}")  # fmt: skip
