"""Compare runs: `python -m align.compare RUN_DIR... [out=DIR]`. Reads run directories only; imports no torch."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from align import runs
from align.report import arms as grouping
from align.report import checks, curves, figures, page, tables

HELP = """\
usage: python -m align.compare RUN_DIR... [out=DIR]

Compares any number of runs, finished or not, and prints a table; the last line is the path of the page.

  RUN_DIR   a folder written by align.run (config.yaml, meta.json, metrics.jsonl, samples.jsonl)
  out=DIR   where to write, made if missing; default: compare

Runs whose configs differ only in the seed are one arm: their values are means over seeds with 95% t-intervals. An arm
with one seed gets its intervals from its prompts instead. Arms are called what their configs differ in.

Written into DIR:
  index.html     summary, figures, config differences and completions side by side; self-contained
  summary.csv    the summary at full precision, one row per arm
  *.svg, *.png   reward against KL; reward, length and KL against the step

Warnings say when arms differ in start weights, data or probe, or disagree at step 0 although they share them.

example: python -m align.compare runs/grpo-0 runs/grpo-1 runs/dpo-0 out=grpo-vs-dpo
"""


class UsageError(ValueError):
    """The command line cannot be understood."""


def compare(paths: Sequence[Path], out: Path) -> Path:
    """Compare run directories, write page, table and figures into `out`, print the table; the page's path comes back.

    Raises runs.RunError when a path is not a run directory, a run is damaged, or `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        comparison = _comparison(paths, out)
        _remove_stale(out, {figure.name for figure, _ in comparison.figures})
        runs.write_text(out / "summary.csv", tables.to_csv(comparison.summaries, comparison.kl))
        runs.write_text(out / "index.html", page.render(comparison))
    except OSError as error:
        raise runs.RunError(f"out={out} cannot be written: {error.strerror or error}") from error
    console = Console()
    for warning in comparison.warnings:
        console.print(Text.assemble(("WARNING ", "bold red"), warning))
    console.print(tables.terminal_table(comparison.summaries, comparison.kl))
    return out / "index.html"


def report(run: Path) -> Path:
    """The page of one run, `RUN_DIR/report.html`, and nothing else beside it."""
    with tempfile.TemporaryDirectory() as figures_folder:
        runs.write_text(run / "report.html", page.render(_comparison([run], Path(figures_folder))))
    return run / "report.html"


def _comparison(paths: Sequence[Path], figures_folder: Path) -> page.Comparison:
    arms, left_out = grouping.group(grouping.load(paths))
    kl = tables.kl_metric(arms)
    summaries = [tables.summarise(arm, kl) for arm in arms]
    drawn = [(figure, figures.save(figure, figures_folder)) for figure in curves.figures(arms, kl)]
    return page.Comparison(arms, left_out, summaries, kl, checks.warnings(arms, left_out), drawn)


def _remove_stale(out: Path, drawn: set[str]) -> None:
    """A figure of an earlier comparison that this one lacks must not lie beside the new page."""
    for name in set(curves.NAMES) - drawn:
        for suffix in (".svg", ".png"):
            (out / f"{name}{suffix}").unlink(missing_ok=True)


def parse(arguments: Sequence[str]) -> tuple[list[Path], Path]:
    """Command line -> run directories and output folder. Raises UsageError naming what is wrong."""
    paths, out = [], Path("compare")
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if Path(argument).exists():
            paths.append(Path(argument))
        elif key == "out" and value:
            out = Path(value)
        elif argument.startswith("-") or (equals and "/" not in key):
            raise UsageError(f"{argument}: not understood; arguments are run directories and out=DIR (see --help)")
        else:
            raise UsageError(f"{argument}: no such run directory")
    if not paths:
        raise UsageError("name at least one run directory: python -m align.compare RUN_DIR... [out=DIR]")
    return paths, out


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        print(compare(*parse(arguments)))
    except (UsageError, runs.RunError) as error:
        print(f"align.compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
