"""Compare runs: `python -m align.compare RUN_DIR... [out=DIR]`. Reads run directories only; imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from align.files import write_text
from align.report import arms as grouping
from align.report import diagnostics, figures, gallery, levels, page, pairs, tables
from align.report.curves import Figure
from align.report.findings import Findings, examine
from align.report.markdown import to_markdown
from align.report.text import complain, one_line
from align.rows import RunError
from align.watched import is_run, is_run_to_read, listed

HELP = """\
usage: python -m align.compare RUN_DIR... [out=DIR]

Compares any number of runs, finished or not, and prints a table; the last line is the path of the page.

  RUN_DIR   a folder written by align.run (config.yaml, meta.json, metrics.jsonl, samples.jsonl, events.jsonl), or a
            folder of such folders
  out=DIR   where to write, made if missing; default: compare

Runs whose configs differ only in the seed are one arm, called what its config differs in. The first arm named is the
one that others are compared with; up to four arms are compared in all pairs. Intervals are 95%: paired over seeds and
prompts, over the prompts alone with one seed. "higher" and "lower" are said where the interval leaves out zero and p
is below 0.05 after Holm's correction; everything else is "not shown".

Written into DIR:
  index.html      five questions answered, tables, figures, config differences, alarms, completions; self-contained
  summary.md      the same sentences and tables as Markdown
  summary.csv     one row per arm, full precision
  pairwise.csv    arm against arm at the end
  matched.csv     arms at the same KL and at the same number of generated tokens
  *.svg, *.png    every figure of the page

Runs of algo=best_of_n and algo=temperature are baselines: untrained, drawn into the figures over KL.
Warnings say when arms differ in start weights, data or probe, or disagree at step 0 although they share them.

example: python -m align.compare runs/grpo-0 runs/grpo-1 runs/dpo-0 out=grpo-vs-dpo
"""


class UsageError(ValueError):
    """The command line cannot be understood."""


def compare(paths: Sequence[Path], out: Path) -> Path:
    """Compare run directories, write page, table and figures into `out`, print the table; the page's path comes back.

    Raises RunError when a path is not a run directory, a run is damaged, or `out` cannot be written.
    """
    found = examine(*grouping.group(grouping.load(paths)))
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = [(figure, figures.save(figure, out)) for figure in _figures(found)]
        remove_stale(out, {figure.name for figure, _ in drawn})
        write_text(out / "summary.csv", tables.to_csv(found.summaries, found.kl))
        write_text(out / "pairwise.csv", pairs.to_csv(found.pairs))
        write_text(out / "matched.csv", levels.to_csv(found.matched))
        write_text(out / "summary.md", to_markdown(found))
        write_text(out / "index.html", page.render(found, drawn, files=True))
    except OSError as error:
        raise RunError(f"out={out} cannot be written: {error.strerror or error}") from error
    console = Console()
    for warning in found.warnings:
        console.print(Text.assemble(("WARNING ", "bold red"), warning))
    console.print(tables.terminal_table(found.summaries, found.kl))
    return out / "index.html"


def report(run: Path) -> Path:
    """The page of one run, `RUN_DIR/report.html`, and nothing else beside it. Raises RunError."""
    found = examine(*grouping.group(grouping.load([run])))
    drawn = [(figure, figures.for_page(figure)) for figure in _figures(found)]
    try:
        write_text(run / "report.html", page.render(found, drawn, files=False))
    except OSError as error:
        raise RunError(f"{run / 'report.html'} cannot be written: {error.strerror or error}; once it can, resume=true "
                       "writes it") from error  # fmt: skip
    return run / "report.html"


def _figures(found: Findings) -> list[Figure]:
    return gallery.figures(found.arms, found.kl, diagnostics.marks(found.fired))


def remove_stale(out: Path, drawn: set[str]) -> None:
    """A figure of an earlier comparison that this one lacks must not lie beside the new page."""
    for name in set(gallery.NAMES) - drawn:
        for suffix in (".svg", ".png"):
            (out / f"{name}{suffix}").unlink(missing_ok=True)


def parse(arguments: Sequence[str]) -> tuple[list[Path], Path]:
    """Command line -> run directories and output folder. Raises UsageError naming what is wrong."""
    paths, out = [], Path("compare")
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if os.path.exists(argument):  # Path.exists would raise for a name that no file can have
            paths += _runs_in(Path(argument))
        elif key == "out" and value:
            out = Path(value)
        elif argument.startswith("-") or (equals and "/" not in key):
            raise UsageError(
                f"{one_line(argument)}: not understood; arguments are run directories and out=DIR (see --help)"
            )
        else:
            raise UsageError(f"{one_line(argument)}: no such run directory")
    if not paths:
        raise UsageError("name at least one run directory: python -m align.compare RUN_DIR... [out=DIR]")
    return paths, out


def _runs_in(path: Path) -> list[Path]:
    """The run directory itself, or those in a folder; what serves others there (stages, sweeps) is left out."""
    if is_run(path) or not path.is_dir():
        return [path]
    if path.name in ("stages", "sweeps"):
        print(f"{path} is left out: it holds no arms of its own", file=sys.stderr)
        return []
    there = {child: is_run_to_read(child) for child in listed(path)}
    for child in (child for child, known in there.items() if known is None):
        print(f"{one_line(str(child))} is left out: it cannot be read", file=sys.stderr)
    return [child for child, known in there.items() if known] or [path]


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        print(compare(*parse(arguments)))
    except (UsageError, RunError) as error:
        complain(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
