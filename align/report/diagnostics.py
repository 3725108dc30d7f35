"""Diagnostics: which declared alarms fired in which arm, and since when. Rules, not findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from align.alarms import ALARM, Alarm, alarms
from align.report.arms import Arm, SeedRun
from align.report.curves import Mark
from align.report.text import one_line


@dataclass(frozen=True)
class Fired:
    """One kind of alarm or event in one arm."""

    arm: Arm
    kind: str
    step: int  # the first, over the arm's seeds
    what: str  # said at that step
    seeds: int
    times: int  # over all seeds
    alarm: bool  # a rule over the metrics; else something the run itself noted in events.jsonl

    @property
    def where(self) -> str:
        """ "2 of 3 seeds"."""
        return f"{self.seeds} of {len(self.arm.seeds)} seeds" if len(self.arm.seeds) > 1 else ""


def diagnose(arms: Sequence[Arm]) -> list[Fired]:
    """By arm, earliest first. Baselines train nothing, so nothing can go wrong in training them."""
    return [fired for arm in arms if arm.trained for fired in _of(arm)]


def marks(fired: Sequence[Fired]) -> list[Mark]:
    """One mark per arm and step, for step figures."""
    places: dict[tuple[int, int], list[str]] = {}
    for each in fired:
        if each.alarm:
            places.setdefault((each.step, each.arm.style), []).append(
                f"{each.arm.label}, step {each.step}: {each.what}"
            )
    return [Mark(step, style, "\n".join(lines)) for (step, style), lines in places.items()]


def _of(arm: Arm) -> list[Fired]:
    said: dict[tuple[bool, str], list[tuple[int, str, int]]] = {}  # -> (step, sentence, which seed)
    for number, run in enumerate(arm.seeds):
        for alarm in alarms(run.record.rows):
            said.setdefault((True, alarm.kind), []).append((alarm.step, alarm.what, number))
        for event in _events(run):
            said.setdefault((False, event.kind), []).append((event.step, event.what, number))
    found = []
    for (alarm, kind), times in said.items():
        step, what, _ = min(times)
        seeds = len({number for _, _, number in times})
        found.append(Fired(arm, one_line(kind), step, one_line(what), seeds, len(times), alarm))
    return sorted(found, key=lambda fired: (not fired.alarm, fired.step))


def _events(run: SeedRun) -> Iterator[Alarm]:
    """What the run noted besides its alarms, which are judged anew here, by the rules as they are now."""
    for event in run.events:
        step = event.get("step")
        if event.get("kind") == ALARM:
            continue
        yield Alarm(step if isinstance(step, int) else 0, str(event.get("kind")), str(event.get("what") or ""))
