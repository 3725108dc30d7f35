"""Watch runs: `python -m align.watch RUN_DIR...`. Reads files only, while they are written; imports no torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from align.report.text import complain, one_line
from align.rows import RunError
from align.watch_view import one_run, sweep
from align.watched import Watched, find

HELP = """\
usage: python -m align.watch RUN_DIR... [once=true]

Shows experiments in the terminal while they run, from any other terminal or machine that sees the folder. It only reads
files: nothing that a run does depends on it.

  RUN_DIR     a folder written by align.run, or a folder of such folders (runs, a sweep's, runs/stages)
  once=true   print the view once and leave; so it is too where output is not a terminal

One run: step and time left, speed, memory, the latest events, what training rows say and their course so far, the first
and the last probe side by side. Several runs, or a folder: one line each, the live ones first, with the numbers of
their last probe.

It leaves when every run named is over; a folder is watched until Ctrl-C, as a sweep's next run may be about to begin.
Leaving by Ctrl-C is no error. Exit codes: 0, and 1 when a path is not a run directory.

A run whose process is gone without a word (killed, machine down) is shown as stopped: the same command with resume=true
goes on with it.

example: python -m align.watch runs/grpo-smollm2-135m-annotator-s0-c0ffee
         python -m align.watch runs
"""
PAUSE = 1.0  # seconds between looks


class Watcher:
    """The runs that the paths name, those that appear in a folder later included."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.runs: dict[Path, Watched] = {}

    def poll(self) -> list[Watched]:
        """Raises RunError when a path is not, or no longer, a run directory or a folder of some."""
        found = list(dict.fromkeys(run for path in self.paths for run in find(path)))
        self.runs = {path: self.runs.get(path) or Watched(path) for path in found}
        for run in self.runs.values():
            run.poll()
        return list(self.runs.values())

    @property
    def over(self) -> bool:
        return all(path in self.runs for path in self.paths) and all(run.over for run in self.runs.values())

    def view(self, width: int) -> RenderableType:
        watched = self.poll()
        if len(watched) == 1 and watched[0].path in self.paths:
            return Group(*one_run(watched[0], width))
        return sweep(watched, width)


def watch(paths: Sequence[Path], console: Console, once: bool) -> None:
    watcher = Watcher(paths)
    if once or not console.is_terminal:
        console.print(watcher.view(console.width))
        return
    with Live(watcher.view(console.width), console=console, auto_refresh=False) as live:
        while not watcher.over:
            time.sleep(PAUSE)
            live.update(watcher.view(console.width), refresh=True)


def parse(arguments: Sequence[str]) -> tuple[list[Path], bool]:
    """Command line -> paths, and whether to look once. Raises RunError naming what is wrong."""
    paths, once = [], False
    for argument in arguments:
        if os.path.exists(argument):  # Path.exists would raise for a name that no file can have
            paths.append(Path(argument))
        elif argument in ("once=true", "once=false"):
            once = argument == "once=true"
        elif argument.startswith("-") or "=" in argument:
            raise RunError(
                f"{one_line(argument)}: not understood; arguments are run directories and once=true (see --help)"
            )
        else:
            raise RunError(f"{one_line(argument)}: no such run directory")
    if not paths:
        raise RunError("name at least one run directory: python -m align.watch RUN_DIR... [once=true]")
    return paths, once


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        paths, once = parse(arguments)
        watch(paths, Console(highlight=False), once)
    except RunError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:  # how one leaves
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
