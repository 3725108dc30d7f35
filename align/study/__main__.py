"""`python -m align.study study=NAME`: run what is missing of a study, then say what it found.

Exit codes: 0 done, whatever the verdict; 1 wrong input; 2 a run failed; 130 interrupted, the same command goes on.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from align.compare import remove_stale
from align.files import write_text
from align.refusals import ConfigError, need, reachable
from align.report import figures, tables
from align.report.metrics import kl_metric
from align.report.text import complain, visible
from align.rows import RunError
from align.run import USER_ERRORS
from align.study import ends, engine, exact, judged, measured, page, panels, record, spec, values, verdict
from align.study.rules import Verdict
from align.study.spec import Study

HELP = """\
usage: python -m align.study study=NAME [tier=cpu] [seeds=0,1,2] [out=studies] [runs_root=runs] [jobs=1] [KEY=VALUE ...]

Runs what is missing of a study, goes on with what was cut off, and says what it found by a rule declared beforehand:
CONFIRMED, REVERSED, EQUIVALENT, INCONCLUSIVE or INVALID. Without study= it lists the studies.

  study=NAME    one of the list, or a .yaml file of your own (conf/study/*.yaml show how; align/study/spec.py)
  tier=NAME     the size that the study declares: cpu or gpu; default: the first it has
  jobs=N        runs at a time, each in a process of its own; with more than one their messages go to out/NAME/logs
  seeds=, KEY=VALUE of align.run (model=tiny steps=2)   to try a study out; the verdict then says "not as declared"

Written into out/NAME: verdict.json, index.html, contrasts.csv, summary.csv and every figure as .svg and .png. An exact
study trains nothing: it writes tables of its own instead of those two, and takes no tier, seeds or settings of runs.
A study that was stopped goes on with the same command. One that is finished takes seconds and changes nothing.
"""


@dataclass(frozen=True)
class Options:
    study: str | None = None
    tier: str | None = None
    seeds: str | None = None
    out: str = "studies"
    runs_root: str = "runs"
    jobs: str = "1"
    extra: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Options:
    given, extra = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        need(bool(equals) and bool(key), "argument", repr(argument), "arguments are KEY=VALUE (see --help)")
        if key in Options.__dataclass_fields__ and key != "extra":
            given[key] = value
        else:
            extra.append(argument)
    need(
        "study" in given or not arguments,
        "study",
        "",
        "name the study: study=NAME; without any argument they are listed",
    )
    values.overrides(extra, "command line")
    return Options(**given, extra=tuple(extra))


def listing() -> None:
    """A line for each study."""
    console = Console(soft_wrap=True)
    for file in spec.files():
        study = spec.load(file)
        console.print(Text.assemble((f"{study.name:<18}", "bold"), f"{study.kind:<8} {study.question['en']}"))


def conduct(options: Options) -> int:
    """Carry a study out; the exit code."""
    assert options.study is not None
    for key in ("out", "runs_root"):
        reachable(key, getattr(options, key))
    study = spec.load(spec.find(options.study))
    out = Path(options.out).expanduser() / study.name
    if study.kind == "exact":
        given = [key for key in ("tier", "seeds") if getattr(options, key) is not None] + list(options.extra)
        need(not given, "command line", " ".join(given), f"study={study.name} is exact: it has no runs to change")
        _exact(study, out)
        return 0
    return _armed(study, options, out)


def _exact(study: Study, out: Path) -> None:
    if kept := record.standing(out, study, exact.source(study)):
        _say(kept[0], "", out)
        return
    computed = exact.compute(study)
    with _writing(out):
        drawn = panels.save(computed.figure, computed.tables, out) if computed.figure else []
    texts = {**computed.csvs(), "index.html": page.render_exact(study, computed, drawn), "verdict.json": computed.text}
    _write(out, texts)
    _say(computed.verdict, "", out)


def _armed(study: Study, options: Options, out: Path) -> int:
    tier = options.tier or next(iter(study.tiers or {}))
    chosen = engine.plan(study, tier, _seeds(options.seeds), options.extra, Path(options.runs_root).expanduser())
    need(_whole(options.jobs) and int(options.jobs) > 0, "jobs", options.jobs, "must be a whole number above 0")
    if other := record.decided(out, chosen):
        raise ConfigError(f"out={options.out}: the study as declared, tier {other}, lies there; give this another out=")
    if study.kind == "measured":
        need(options.jobs == "1", "jobs", options.jobs, "the study is measured in this process; leave it out")
        _measured(chosen, out)
        return 0
    tasks = engine.expand(chosen)
    failed = engine.carry_out(tasks, int(options.jobs), out / "logs")
    if failed:
        many = f"{len(failed)} of {len(tasks)} runs"
        complain(f"{many} failed, so there is no verdict; the same command tries them again")
        return engine.worst(failed)
    paths = [path for task in tasks if (path := engine.finished(task))]
    _conclude(chosen, verdict.read_arms(tasks, paths), out, measured.source(chosen))
    return 0


def _measured(chosen: engine.Plan, out: Path) -> None:
    source = measured.source(chosen)
    if kept := record.standing(out, chosen.study, source):
        found, screen = kept
        _say_of(chosen.study, found, out, screen)
    else:
        _conclude(chosen, measured.measure(chosen, engine.expand(chosen)), out, source)


def _conclude(chosen: engine.Plan, arms: judged.Arms, out: Path, source: str) -> None:
    found = verdict.screened(chosen, verdict.examine(chosen.study, arms))
    text = record.of_arms(chosen, found, source)
    if not _same(out, text):
        _write_arms(out, chosen, found, text)
    _say_of(chosen.study, found.verdict, out, found.screen)


def _write_arms(out: Path, chosen: engine.Plan, found: verdict.Found, text: str) -> None:
    with _writing(out):
        drawn = [(figure, figures.save(figure, out)) for figure in page.draw(found)]
        every = [(figure, ends.save(figure, out)) for figure in ends.figures_of(chosen.study, found)]
    remove_stale(out, {figure.name for figure, _ in drawn})
    arms = list(found.arms.values())
    kl = kl_metric(arms)
    _write(out, {
        "summary.csv": tables.to_csv(tables.summarise(arms, kl), kl),
        "contrasts.csv": record.contrasts_csv(found),
        "index.html": page.render_arms(chosen, found, drawn, every),
        "verdict.json": text,
    })  # fmt: skip


def _same(out: Path, text: str) -> bool:
    """Whether this verdict stands there already, with its page: verdict.json is the last that is written."""
    file = out / "verdict.json"
    return file.is_file() and (out / "index.html").is_file() and file.read_bytes() == text.encode()


def _write(out: Path, texts: dict[str, str]) -> None:
    with _writing(out):
        for name, text in texts.items():
            write_text(out / name, text)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """The folder is there, and what cannot be written into it says so."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(f"out={out} cannot be written: {error.strerror or error}") from error


def _say_of(study: Study, found: Verdict, out: Path, screen: bool) -> None:
    assert study.primary is not None
    _say(found, page.sentence(found, judged.metric_of(study.primary.metric)), out, screen)


def _say(found: Verdict, sentence: str, out: Path, screen: bool = False) -> None:
    provisional = " (provisional: fewer than 5 seeds)" if found.provisional and not screen else ""
    print(f"{page.shown(found, screen)}{provisional}{f': {sentence}' if sentence else ''}")
    print(visible(found.reason) + (f"\n{found.power}" if found.power else ""))
    print(f"{out / 'verdict.json'}\n{out / 'index.html'}")


def _whole(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(2**32))


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    need(all(map(_whole, parts)), "seeds", text, "must be whole numbers with commas: seeds=0,1,2")
    return values.seed_list([int(part) for part in parts])


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        options = parse(arguments)
        if options.study is None:
            listing()
            return 0
        return conduct(options)
    except (ConfigError, RunError) as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on and skips what is finished", file=sys.stderr)
        return 130
    except Exception as error:
        if {kind.__name__ for kind in type(error).__mro__} & {*USER_ERRORS}:  # of modules that take seconds to import
            complain(error)
            return 1
        traceback.print_exc()
        complain(f"the study failed: {type(error).__name__}: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
