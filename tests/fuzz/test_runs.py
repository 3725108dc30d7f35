"""Damaged run directories: read, compared, reported and watched, or refused by one sentence."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from rich.console import Console

from align import compare, runs, watch
from align.refusals import ConfigError
from align.rows import RunError
from tests.fuzz import bad
from tests.fuzz.test_config import VALUES, command, override, streams
from tests.fuzz.trial import attempt, fuzzed, nothing_half_written
from tests.runs.fake_runs import config, write_run

FILES = ("config.yaml", "meta.json", "metrics.jsonl", "samples.jsonl", "events.jsonl", "status.json")
RARER = ("error.log", "report.html")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three finished runs of few prompts, and one that failed."""
    root = tmp_path_factory.mktemp("whole")
    events = [("clip", 10, "ratios explode"), ("nonfinite", 20, "a loss was not finite")]
    hostile = ("<script>alert(1)</script>", "<img src=x onerror=x></script><script>x")
    write_run(root / "grpo-0", config(seed=0), events=events, texts=hostile)
    write_run(root / "dpo-0", config("dpo", 0), meta={"name": hostile[0]})
    write_run(root / "bon", config("best_of_n", 0, steps=3), steps=(0, 1, 2, 3))
    write_run(root / "failed", config("sft", 1), state="failed")
    for file in root.rglob("samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_bytes(bad.lines([row for row in rows if row["prompt_id"] in ("p0", "p1")]))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def damage(rng, run, times: int) -> None:
    for _ in range(times):
        path = run / (rng.choice(FILES) if rng.random() < 0.95 else rng.choice(RARER))
        if path.is_file() and not path.is_symlink():
            spoil(rng, path)


def spoil(rng, path) -> None:
    try:
        if path.suffix == ".yaml":  # YAML holds JSON
            whole = json.dumps(runs.yaml.safe_load(path.read_bytes()))
            path.write_text(whole)
        if path.suffix in (".yaml", ".json", ".jsonl"):
            bad.spoil_json(rng, path)
        else:
            path.write_bytes(bad.damaged(rng, path.read_bytes()))
    except (ValueError, runs.yaml.YAMLError, RecursionError):  # damaged already
        path.write_bytes(bad.damaged(rng, path.read_bytes()))


@fuzzed(150)
def test_damaged_runs_are_read_and_watched(whole, folder, rng):
    run = bad.copied(whole / rng.choice(("grpo-0", "bon", "failed")), folder / "run")
    damage(rng, run, rng.randrange(1, 4))
    attempt("runs, read", lambda: runs.read(run, samples=True), RunError)
    width = rng.choice((40, 60, 100, 120))

    def frame(path):
        console = Console(width=width, file=io.TextIOWrapper(io.BytesIO(), "utf-8"), force_terminal=True)
        watcher = watch.Watcher([path])
        console.print(watcher.view(width))
        console.print(watcher.view(width))
        assert isinstance(watcher.over, bool)

    attempt("runs, watched", lambda: frame(run), RunError)
    attempt("folders of runs, watched", lambda: frame(folder), RunError)


@fuzzed(100)
def test_what_is_appended_to_a_watched_run(whole, folder, rng):
    run = bad.copied(whole / "grpo-0", folder / "run")
    watcher = watch.Watcher([run])
    watcher.view(80)
    for name in ("metrics.jsonl", "events.jsonl", "status.json"):
        if rng.random() < 0.6:
            spoil(rng, run / name)

    def frame():
        Console(width=80, file=io.StringIO()).print(watcher.view(80))

    attempt("watched while they change", frame, RunError)


@fuzzed(100)
def test_command_lines_of_compare_and_watch(whole, folder, monkeypatch, rng):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(compare, "compare", lambda paths, out: out)
    parts = ("once=true", "once=x", "out=", "out=x", "=", "-x", str(whole), str(whole / "grpo-0"), *VALUES)
    given = [
        rng.choice((str(whole), str(whole / "grpo-0"), rng.choice(parts), override(rng))).replace("\0", "")
        for _ in range(rng.randrange(4))
    ]
    attempt("align.compare", lambda: command(lambda: compare.main(given)), ConfigError)
    attempt("align.watch", lambda: command(lambda: watch.main(given)), ConfigError)


@fuzzed(15)
def test_damaged_runs_are_reported(whole, folder, monkeypatch, rng):
    run = bad.copied(whole / rng.choice(("grpo-0", "bon")), folder / "run")
    damage(rng, run, rng.randrange(1, 3))
    with monkeypatch.context() as patched:
        if rng.random() < 0.7:  # figures take most of the time
            patched.setattr(compare, "_figures", lambda _: [])
        reported(run)


def reported(run) -> None:
    page = attempt("reports", lambda: compare.report(run), RunError)
    nothing_half_written(run)
    if page is not None:
        harmless(page.read_text("utf-8"))


@fuzzed(3)
def test_damaged_runs_are_compared(whole, folder, rng):
    root = bad.copied(whole, folder / "runs")
    for run in sorted(root.iterdir()):
        if rng.random() < 0.3:
            damage(rng, run, 1)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)

    def compared():
        with streams():
            return compare.compare(*compare.parse([str(root), f"out={out}"]))

    page = attempt("comparisons", compared, RunError)
    nothing_half_written(folder)
    if page is not None:
        harmless(page.read_text("utf-8"))


def harmless(page: str) -> None:
    """Nothing that a run said is markup: the page's own script is the only one."""
    assert page.lower().count("<script") == 1 and "<img src=x" not in page
