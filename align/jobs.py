"""One job of a sweep: skipped when its run is finished, else carried out in a process of its own, and recorded.

What a job does never stops the next one: a wrong config, a crash or a kill becomes the exit code in its record. Records
are files of the sweep's folder, so that jobs in other processes or on other machines can leave theirs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from align.config import ConfigError, check
from align.files import write_text
from align.locks import held
from align.places import Place, place
from align.private import scrubbed
from align.report.text import visible
from align.rows import RunError
from align.runs import read
from align.schema import Experiment
from align.stopping import Terminated

# Names the file in which `align.run` leaves the sentence that it ends with.
LAST_WORDS = "ALIGN_LAST_WORDS"
# Process that started a job's run, whose end the run does not survive (align/stopping.py).
PARENT = "ALIGN_PARENT"
POLL_SECONDS = 0.2
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
INTERRUPTED = 130


class JobError(RuntimeError):
    """A job has no objective to give, for a sweeper that optimises one."""


@dataclass(frozen=True)
class Job:
    """The record of a job, `jobs/NUMBER.json`: state is running, finished, skipped, failed or interrupted."""

    number: int
    overrides: tuple[str, ...]
    state: str = "running"
    exit_code: int | None = None
    run_dir: str | None = None
    seconds: float = 0.0
    error: str = ""

    def ended(self, code: int, error: str = "") -> Job:
        states = {0: "finished", INTERRUPTED: "interrupted"}
        return replace(self, state=states.get(code, "failed"), exit_code=code, error=error)

    def apart(self, swept: Sequence[str]) -> list[str]:
        """The overrides of the fields that are swept; all of them in a sweep of one job."""
        return [item for item in self.overrides if item.partition("=")[0] in swept] or list(self.overrides)


def records(folder: Path) -> list[Job]:
    """What the jobs of a sweep have left so far, in their order."""
    found = [json.loads(file.read_text("utf-8")) for file in (folder / "jobs").glob("*.json")]
    return sorted((Job(**kept | {"overrides": tuple(kept["overrides"])}) for kept in found), key=lambda j: j.number)


def record(folder: Path, job: Job) -> Job:
    write_text(folder / "jobs" / f"{job.number}.json", json.dumps(asdict(job), indent=1))
    return job


def run_job(cfg: DictConfig) -> float | int:
    """What Hydra calls for each job of a sweep: the exit code comes back, or the objective where there is one.

    Raises JobError for a job without an objective, which is how a sweeper that optimises hears of a failure.
    """
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # a Ray worker is somewhere else; paths are meant from where the sweep was started
    folder, objective = Path(hydra.sweep.dir), hydra.callbacks.sweep.objective
    job = Job(int(hydra.job.num), tuple(hydra.overrides.task))
    sweep = json.loads((folder / "sweep.json").read_text("utf-8"))
    print(f"== job {job.number + 1} of {sweep['jobs']}: {' '.join(job.apart(sweep['swept']))}", flush=True)
    started = time.monotonic()
    try:
        job = carry_out(cfg, job, hydra, folder)
    except BaseException as error:  # submitit ends a job whose time is over by an exception of its own
        kept = {job.number: job for job in records(folder)}.get(job.number, job)
        code, why = (2, f"{type(error).__name__}: {error}") if isinstance(error, Exception) else (INTERRUPTED, "")
        ended = replace(kept.ended(code, _first_line(scrubbed(why))), seconds=round(time.monotonic() - started, 3))
        with suppress(OSError):  # on a full disk too it is that error which passes on
            record(folder, ended)
        raise
    value: float | int = job.exit_code or 0
    if objective is not None and value == 0:
        try:
            value = measured(Path(str(job.run_dir)), objective)
        except JobError as error:
            job = job.ended(1, str(error))
    record(folder, replace(job, seconds=round(time.monotonic() - started, 3)))
    if job.exit_code:
        print(
            f"== job {job.number + 1} failed ({job.exit_code}): {visible(str(job.error))}", file=sys.stderr, flush=True
        )
    if job.exit_code and objective is not None:
        raise JobError(f"job {job.number + 1} ended with exit code {job.exit_code}: {job.error}")
    return value


def carry_out(cfg: DictConfig, job: Job, hydra: HydraConf, folder: Path) -> Job:
    """Skip the job, refuse it, or run it in a child; the ended record comes back.

    When another process works in its run directory, it is waited for: two sweeps may have the same job.
    """
    try:
        experiment = replace(check(cfg), resume=True)
        while True:
            where = free_place(experiment)
            job = replace(job, run_dir=str(where.path))
            if where.complete:
                print(f"finished already: {where.path}", flush=True)
                return replace(job.ended(0), state="skipped")
            ended = _in_a_child(record(folder, job), hydra, folder)
            # another process may have been the first to open the directory: then the child was refused
            if ended.exit_code != 1 or not (held(where.path) or place(experiment).complete):
                return ended
    except (ConfigError, RunError) as error:
        return job.ended(1, _first_line(str(error)))


def free_place(experiment: Experiment) -> Place:
    """Where its run is, once no other process works in it."""
    where = place(experiment)
    if held(where.path):
        print(f"another process is working in {where.path}: waiting for it", flush=True)
        while held(where.path):
            time.sleep(POLL_SECONDS)
    return place(experiment)


def _in_a_child(job: Job, hydra: HydraConf, folder: Path) -> Job:
    words = folder / "jobs" / f"{job.number}.words"
    # several at once would write over each other on one terminal
    log = None if hydra.launcher._target_ == BASIC_LAUNCHER else folder / "jobs" / f"{job.number}.log"
    try:
        code = run_child(command(hydra), words, log)
        said = _first_line(words.read_text("utf-8", errors="replace")) if words.is_file() else ""
    finally:
        words.unlink(missing_ok=True)
    if code > 128 and not said:
        said = f"ended by signal {code - 128}"
    return job.ended(code, (said or f"exit code {code}, see its messages") if code else "")


def command(hydra: HydraConf) -> list[str]:
    """The same experiment as one run: the job's overrides, and where the sweep was told to look for configs."""
    made = [sys.executable, "-m", "align.run", "--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            made += ["--config-dir", source.path]
    searched = [item for item in hydra.overrides.hydra if item.startswith("hydra.searchpath=")]
    own = [item for item in hydra.overrides.task if item.partition("=")[0] != "resume"]
    return [*made, *searched, *own, "resume=true"]


def run_child(arguments: Sequence[str], words: Path, log: Path | None) -> int:
    """The exit code of a command, 128 + n when signal n ended it. An interrupt is passed on, and waited for.

    The child has a process group of its own: Ctrl-C on a terminal would reach it twice, and the second breaks off the
    saving that the first began. A second one of the user's is meant so.
    """
    with ending_signals_interrupt():
        child = start_child(arguments, words, log)
        try:
            child.wait()
        except BaseException as error:  # submitit's too, from its handler of a signal: the run must not go on
            interrupt([child], error)
            raise
    return exit_code(child)


def start_child(arguments: Sequence[str], words: Path, log: Path | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, LAST_WORDS: str(words.absolute()), PARENT: str(os.getpid())}
    with log.open("wb") if log else nullcontext() as out:
        return subprocess.Popen(
            arguments, stdout=out, stderr=subprocess.STDOUT if log else None, env=environment, process_group=0
        )


def interrupt(children: Sequence[subprocess.Popen[bytes]], error: BaseException) -> None:
    """Pass on what ends this process and wait for what the children save; a second one ends them.

    Ctrl-C is passed on as it is. Whatever else it was, SIGTERM: the children finish their step and keep it.
    """
    # behind `&` in a script SIGINT is ignored, by the children too
    by_hand = isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated)
    heard = by_hand and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    for child in children:
        child.send_signal(signal.SIGINT if heard else signal.SIGTERM)
    try:
        for child in children:
            child.wait()
    except KeyboardInterrupt:
        for child in children:
            child.kill()
            child.wait()


def exit_code(child: subprocess.Popen[bytes]) -> int:
    """Of a child that has ended: 128 + n when signal n ended it."""
    code = child.returncode
    return 128 - code if code < 0 else code


@contextmanager
def ending_signals_interrupt() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, raise Terminated: they would leave the child behind."""

    def told(*_: object) -> None:
        raise Terminated

    names = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    changed = [name for name in names if signal.getsignal(name) is signal.SIG_DFL]  # nohup ignores SIGHUP: leave it so
    for name in changed:
        signal.signal(name, told)
    try:
        yield
    finally:
        for name in changed:
            signal.signal(name, signal.SIG_DFL)


def measured(run: Path, key: str) -> float:
    """The last probe's value of a key. Raises JobError naming the keys there are, or that it was not finite."""
    probes = read(run).phase("probe")
    row = probes[-1] if probes else {}
    if key not in row:
        known = sorted(name for name, value in row.items() if isinstance(value, float))
        raise JobError(f"hydra.callbacks.sweep.objective={key}: {run} does not measure it; it has {', '.join(known)}")
    if not isinstance(row[key], int | float | None):
        raise JobError(f"hydra.callbacks.sweep.objective={key}: it is no number in {run}")
    if row[key] is None:
        raise JobError(f"hydra.callbacks.sweep.objective={key}: it is not finite at the end of {run}")
    return float(row[key])


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
