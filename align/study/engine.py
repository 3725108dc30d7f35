"""From a declared study to its runs: which there are, which are finished, and how the others come to be.

An arm and a seed are one experiment of `align.run`; where its run lies follows from its config (align/places.py), so a
study that is started again, in another folder or by another study that shares an arm, finds what is finished.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from align.compose import composed
from align.config import check, config_hash, plain
from align.jobs import (
    INTERRUPTED,
    POLL_SECONDS,
    ending_signals_interrupt,
    exit_code,
    free_place,
    interrupt,
    start_child,
)
from align.places import place
from align.refusals import ConfigError, need, one_of
from align.report.text import visible
from align.schema import Experiment
from align.study import settings
from align.study.settings import Settings
from align.study.spec import Study


@dataclass(frozen=True)
class Plan:
    """How a study is to be carried out."""

    study: Study
    tier: str
    seeds: tuple[int, ...]
    extra: tuple[str, ...]  # overrides from the command line: with others than it asks for, not the declared study
    runs_root: Path

    @property
    def changes(self) -> list[str]:
        """Overrides that the study does not ask for."""
        return [item for item in self.extra if item.partition("=")[0] not in self.study.asks]

    @property
    def as_declared(self) -> bool:
        return not self.changes and self.seeds == (self.study.seeds or {}).get(self.tier)

    @property
    def screens(self) -> bool:
        """Whether its tier is too small to decide the claim."""
        return self.tier in self.study.screen

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """Controls and mitigations may have fewer: they decide no claim."""
        study = self.study
        assert study.roles is not None
        many = None if study.beside is None or study.roles[arm] == "arm" else study.beside[self.tier]
        return self.seeds[:many]


@dataclass(frozen=True)
class Task:
    """One run of a study."""

    arm: str
    seed: int
    overrides: tuple[str, ...]
    experiment: Experiment
    own: Settings | None = None  # of a study of kind measured

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Failed:
    task: Task
    code: int
    what: str


def plan(study: Study, tier: str, seeds: tuple[int, ...] | None, extra: Sequence[str], runs_root: Path) -> Plan:
    tiers = study.seeds or {}
    one_of(tier, tuple(tiers), "tier")
    for key in study.asks:
        given = any(item.partition("=")[0] == key for item in extra)
        need(given, key, "", f"study={study.name} asks for it: give {key}=VALUE on the command line")
    return Plan(study, tier, seeds or tiers[tier], tuple(extra), runs_root)


def expand(chosen: Plan) -> list[Task]:
    """Every run of a study, checked. Raises ConfigError naming the arm before anything is run."""
    study, made = chosen.study, []
    assert study.overrides is not None and study.tiers is not None
    for arm, own in study.overrides.items():
        overrides = merged(study.base, study.tiers[chosen.tier], own, chosen.extra)
        made += list(_tasks(arm, overrides, chosen))
    _refuse_same(made)
    units = [
        *(c.of for c in (study.primary, *(study.secondary or {}).values()) if c),
        study.cure and study.cure.cost.of,
    ]
    if "base_within_prompt_sd" in units:
        few = next((task for task in made if task.experiment.probe.samples < 2), None)
        need(few is None, "probe.samples", 1, "a margin in base_within_prompt_sd needs 2 answers or more to a prompt")
    return made


def merged(*lists: Sequence[str]) -> tuple[str, ...]:
    """KEY=VALUE of all lists; of one key the last."""
    return tuple({item.partition("=")[0]: item for items in lists for item in items}.values())


def _tasks(arm: str, overrides: tuple[str, ...], chosen: Plan) -> Iterator[Task]:
    module = chosen.study.module
    runs, given = settings.split(module, overrides) if module else (overrides, ())
    try:
        own = settings.read(module, given) if module else None
        cfg = composed(runs)
        for seed in chosen.seeds_of(arm):
            cfg.seed, cfg.runs_root, cfg.resume = seed, str(chosen.runs_root), True
            experiment = check(cfg)
            if own is not None:
                own.fits(experiment)
            yield Task(arm, seed, overrides, experiment, own)
    except ConfigError as error:
        raise ConfigError(f"arm {arm}: {error}") from None


def _refuse_same(tasks: Sequence[Task]) -> None:
    """Two arms of one experiment would be compared with themselves."""
    seen: dict[tuple[str, Settings | None], Task] = {}
    for task in tasks:
        other = seen.setdefault((config_hash(plain(task.experiment)), task.own), task)
        if other is not task:
            raise ConfigError(f"arms {other.arm} and {task.arm}: both are the same experiment; their overrides must "
                              "differ")  # fmt: skip


def finished(task: Task) -> Path | None:
    """Its run directory, if the run is finished, its page included. Raises RunError where the folder is damaged."""
    where = place(task.experiment)
    return where.path if where.complete else None


def command(task: Task) -> list[str]:
    root = task.experiment.runs_root.replace("\\", "\\\\").replace("'", "\\'")
    own = [f"seed={task.seed}", f"runs_root='{root}'", "resume=true"]
    return [sys.executable, "-m", "align.run", *task.overrides, *own]


def carry_out(tasks: Sequence[Task], at_once: int, folder: Path) -> list[Failed]:
    """Run what is not finished, `at_once` processes at a time; what failed comes back, and never stops the others.

    An interrupt is passed on to the runs, waited for and raised again. With several at once each has a log in `folder`,
    as they would write over each other on one terminal.
    """
    waiting = [(number, task) for number, task in enumerate(tasks) if finished(task) is None]
    print(f"{len(tasks)} runs, {len(tasks) - len(waiting)} finished already", flush=True)
    total, failed = len(waiting), []
    running: dict[int, tuple[Task, subprocess.Popen[bytes]]] = {}
    with ending_signals_interrupt(), _interrupting(running):
        while waiting or running:
            while waiting and len(running) < at_once:
                number, task = waiting.pop(0)
                print(f"== run {total - len(waiting)} of {total}: {task.name}", flush=True)
                free_place(task.experiment)  # one that was killed may have left a run behind; another may share it
                running[number] = task, _start(task, number, folder, at_once > 1)
            time.sleep(POLL_SECONDS)
            for number in [n for n, (_, child) in running.items() if child.poll() is not None]:
                task, child = running.pop(number)
                failed += _ended(task, child, folder / f"{number}.words")
    return sorted(failed, key=lambda one: tasks.index(one.task))  # several at once end in any order


@contextmanager
def _interrupting(running: dict[int, tuple[Task, subprocess.Popen[bytes]]]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # also one of our own: no child may go on unseen
        interrupt([child for _, child in running.values()], error)
        raise


def _start(task: Task, number: int, folder: Path, logged: bool) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / f"{number}.words"
    words.unlink(missing_ok=True)
    return start_child(command(task), words, folder / f"{task.arm}-{task.seed}.log" if logged else None)


def _ended(task: Task, child: subprocess.Popen[bytes], words: Path) -> list[Failed]:
    code = exit_code(child)
    said = words.read_text("utf-8", errors="replace").strip() if words.is_file() else ""
    words.unlink(missing_ok=True)
    if code == 0 and finished(task) is not None:
        return []
    what = (said.splitlines() or [f"ended by signal {code - 128}" if code > 128 else f"exit code {code}"])[0]
    print(f"== {task.name} failed ({code}): {visible(what)}", file=sys.stderr, flush=True)
    return [Failed(task, code or 2, what)]


def worst(failed: Sequence[Failed]) -> int:
    """The exit code of a study with runs that failed."""
    codes = {1 if one.code == 1 else INTERRUPTED if one.code == INTERRUPTED else 2 for one in failed}
    return 2 if 2 in codes else max(codes, default=0)
