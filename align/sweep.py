"""A sweep: refused when its jobs would disturb each other, and ended with a table and the comparison of their runs.

Jobs are those of align/jobs.py; here is what happens once, in the process that was started by hand.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.files import write_text
from align.jobs import INTERRUPTED, Job, record, records
from align.locks import held
from align.refusals import ConfigError, need
from align.report.text import complain, one_line
from align.rows import RunError
from align.runs import read

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
# What brings a launcher or sweeper of Hydra's; docs/sweeps.md says what is known of each.
PLUGINS = {
    "launcher/joblib": "pip install 'align[sweeps]'",
    "launcher/submitit_local": "pip install 'align[launchers]'",
    "launcher/submitit_slurm": "pip install 'align[launchers]'",
    "launcher/ray": "pip install 'ray>=2.50' && pip install --no-deps hydra-ray-launcher==1.2.2",
    "sweeper/optuna": "pip install 'align[sweeps]'",
}
FOLDERS: list[Path] = []  # of the sweep that this process has begun: Hydra makes the callback and hands it to nobody


class Begin(Callback):
    """Checks a sweep before its first job and makes its folder (conf/run.yaml).

    objective: key of the probe whose last value a sweeper that optimises gets.
    """

    def __init__(self, objective: str | None):
        self.objective = objective

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        sweeper = config.hydra.sweeper
        given = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in (sweeper.params or {}).items())]
        try:
            overrides = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(given)}
            refuse(list(overrides.values()))
            need(not str(folder).startswith("~"), "hydra.sweep.dir", folder, "write the folder out, without ~")
            _refuse_launcher(config.hydra.launcher._target_)
            _refuse_objective(self.objective, sweeper._target_ != BASIC_SWEEPER)
            jobs = sweeper.get("n_trials") or number_of_jobs(list(overrides.values()))
            swept = [o.get_key_element() for o in overrides.values() if o.is_sweep_override()]
            make_folder(folder, {"jobs": jobs, "swept": swept, "overrides": given})
        except (ConfigError, HydraException) as error:  # Hydra makes a callback's exception a warning; an exit passes
            complain(error)
            sys.exit(1)
        FOLDERS.append(folder)


def refuse(overrides: Sequence[Override]) -> None:
    """Raises ConfigError for what cannot hold for several jobs."""
    for override in overrides:
        key, text = override.key_or_group, str(override.input_line).partition("=")[2]
        need(key != "run_dir", key, text, "the jobs of a sweep would share it; leave it out, each run is named from "
             "its config inside runs_root")  # fmt: skip
        need(key != "runs_root" or not override.is_sweep_override(), key, text, "a sweep has one root")
        need(key != "resume" or override.value() is True, key, text, "a sweep always goes on with what it finds; to "
             "train finished jobs anew name another runs_root")  # fmt: skip
    ranks = os.environ.get("WORLD_SIZE", "1")
    need(ranks == "1", "WORLD_SIZE", ranks, "a sweep starts its jobs itself, on one process each; launch the jobs one "
         "by one to have them on several")  # fmt: skip


def missing_plugin(error: str) -> str | None:
    """What to install where Hydra could not find a launcher or sweeper that exists."""
    found = re.search(r"Could not find 'hydra/((?:launcher|sweeper)/\w+)'", error)
    if found is None or found[1] not in PLUGINS:
        return None
    group, name = found[1].split("/")
    return f"hydra/{group}={name}: its plugin is not installed; {PLUGINS[found[1]]} (docs/sweeps.md)"


def _refuse_launcher(launcher: str) -> None:
    here = launcher != SLURM or shutil.which("sbatch") is not None
    need(here, "hydra/launcher", "submitit_slurm", "there is no sbatch here; start the sweep where jobs of the cluster "
         "are submitted, or take submitit_local")  # fmt: skip


def _refuse_objective(objective: str | None, optimises: bool) -> None:
    key = "hydra.callbacks.sweep.objective"
    need(optimises or objective is None, key, objective, "only a sweeper that optimises reads it, e.g. "
         "hydra/sweeper=optuna; leave it out")  # fmt: skip
    need(not optimises or objective is not None, key, "null", "hydra/sweeper has to be told what to optimise: a key of "
         "the probe, e.g. reward/proxy (docs/metrics.md)")  # fmt: skip


def number_of_jobs(overrides: Sequence[Override]) -> int:
    return math.prod(sum(1 for _ in o.sweep_iterator()) for o in overrides if o.is_discrete_sweep())


def make_folder(folder: Path, about: Mapping[str, Any]) -> None:
    try:
        (folder / "jobs").mkdir(parents=True)
        write_text(folder / "sweep.json", json.dumps(about, indent=1))
    except FileExistsError:
        raise ConfigError(f"hydra.sweep.dir={folder}: there is a sweep already; name another folder") from None
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir={folder}: cannot be written: {error.strerror or error}") from None


@contextmanager
def ending() -> Iterator[None]:
    """Around Hydra's main. However a sweep ends, its jobs are listed, and compared unless it was interrupted.

    Exits with the code of the jobs: 0 all done, 1 bad input, 2 a job failed to run. Does nothing for a single run.
    """
    try:
        yield
    except KeyboardInterrupt:
        if FOLDERS:
            show(FOLDERS[0], settle(FOLDERS[0], INTERRUPTED))
            print("the same command goes on and skips what is finished", file=sys.stderr)
        raise
    except Exception as error:
        if not FOLDERS or not records(FOLDERS[0]):  # Hydra refused the command line
            raise
        jobs = settle(FOLDERS[0], 2, "its process ended without a word")
        complain(f"the sweep was broken off: {type(error).__name__}: {error}")
        sys.exit(max(close(FOLDERS[0], jobs), 1))
    if FOLDERS:
        sys.exit(close(FOLDERS[0], records(FOLDERS[0])))


def settle(folder: Path, code: int, error: str = "") -> list[Job]:
    """Jobs that others were still running when the sweep ended are over too, but for those that still go on:
    submitit's are processes that the sweep's end does not end."""
    jobs = records(folder)
    over = [job.state == "running" and not (job.run_dir and held(Path(job.run_dir))) for job in jobs]
    settled = [job.ended(code, error) if gone else job for job, gone in zip(jobs, over, strict=True)]
    for job, gone in zip(settled, over, strict=True):
        if gone:
            with suppress(OSError):  # a full disk: the table still says it
                record(folder, job)
    return settled


def close(folder: Path, jobs: Sequence[Job]) -> int:
    """List the jobs, compare their runs; the exit code of the sweep. The page's path is the last line printed."""
    show(folder, jobs)
    code = exit_code(jobs)
    runs = [path for path in dict.fromkeys(Path(job.run_dir) for job in jobs if job.run_dir) if _readable(path)]
    if not runs:
        print(f"no job left a run to compare; records are in {folder / 'jobs'}", file=sys.stderr)
        return code
    try:
        from align.compare import compare

        print(compare(runs, folder))
    except Exception as error:  # the jobs are done, and their exit code is what the caller waits for
        traceback.print_exc()
        complain(f"the comparison failed: {error}; records are in {folder / 'jobs'}")
        return max(code, 2)
    return code


def exit_code(jobs: Sequence[Job]) -> int:
    codes = {job.exit_code for job in jobs}
    if codes - {0, 1, INTERRUPTED}:
        return 2
    return INTERRUPTED if INTERRUPTED in codes else max(codes, default=0)


def show(folder: Path, jobs: Sequence[Job]) -> None:
    """Job, what sets it apart, how it ended, and its run directory or the first line of its error."""
    swept = json.loads((folder / "sweep.json").read_text("utf-8"))["swept"]
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("job", "overrides", "ended", "run directory, or what was wrong"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        cells = (
            job.number + 1,
            " ".join(job.apart(swept)),
            f"{job.exit_code} {job.state}".removeprefix("None "),
            job.error or job.run_dir,
        )
        table.add_row(*(Text(one_line(str(cell))) for cell in cells))
    Console().print(table)


def _readable(path: Path) -> bool:
    try:
        read(path)
    except RunError:
        return False
    return True
