"""The view of runs that are being written, have died, failed or ended, from files alone."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align import watch, watch_view
from align.locks import held
from align.rows import RunError
from align.runs import Run
from align.watched import SILENCE, Tail, Watched
from tests.runs.fake_runs import config, write_run


def shown(*paths: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    watch.watch(paths, console, once=True)
    return console.file.getvalue()


def opened(path: Path, **settings: Any) -> Run:
    return Run.create(path, config(steps=20, **settings), {"name": "grpo smollm2-135m annotator"})


def silent(path: Path) -> None:
    """As if nothing had been written for long."""
    for file in path.iterdir():
        os.utime(file, times=(time.time() - 2 * SILENCE,) * 2)


def test_a_finished_run_shows_its_first_and_last_probe(tmp_path):
    text = shown(write_run(tmp_path / "run", config(steps=20), values={"reward/gold": 0.25}))
    assert "grpo smollm2-135m annotator seed 0" in " ".join(text.split()) and "finished" in text
    assert "step 20/20" in text and "left" not in text and "ago" not in text
    (gold,) = (line for line in text.splitlines() if line.startswith("reward/gold"))
    assert gold.split() == ["reward/gold", "0.250", "0.250", "▄▄▄"]
    (head,) = (line for line in text.splitlines() if line.startswith("probe"))
    assert head.split() == ["probe", "step", "0", "step", "20", "so", "far"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal(tmp_path, width):
    with opened(tmp_path / "run") as run:
        for step in range(300):
            numbers = dict.fromkeys([key for *_, keys in watch_view.TRAIN for key in keys], -123456.789 - step)
            run.log("train", step, numbers | {"memory/peak_gb": 70.0})
            run.log("probe", step, dict.fromkeys(watch_view.SUMMARY, -1234.5))
            run.count(prompts=1, completions=8, gen_tokens=1_000_000)
        run.event("kl", 3, "far " * 50)
        for text in (shown(run.path, width=width), shown(tmp_path, width=width)):
            assert max(len(line) for line in text.splitlines()) <= width
            assert "-123456" in text or "1.23e+05" in text or "-1234" in text or "-1.23e+03" in text


def test_before_the_first_row_it_waits(tmp_path):
    with opened(tmp_path / "run") as run:
        text = shown(run.path)
    assert "running" in text and "no row yet" in text and "step 0/20" in text


def test_speed_and_time_left_are_those_of_the_last_rows(tmp_path, monkeypatch):
    clock = iter(range(1000))
    with opened(tmp_path / "run") as run:
        monkeypatch.setattr("align.runs.time.monotonic", lambda: 2.0 * next(clock))  # a row every two seconds
        for step in range(5):
            run.log("train", step, {"loss": 1.0})
            run.count(prompts=1, completions=8, gen_tokens=300)
        monkeypatch.undo()
        watched = Watched(run.path)
        watched.poll()
        assert watched.rate("step") == 0.5 and watched.rate("gen_tokens") == 150.0
        assert watched.left == 32.0  # 16 of 20 steps
        assert "2 s/step" in (text := shown(run.path)) and "150 tokens/s" in text and "32 s left" in text


def test_a_run_whose_process_is_gone_without_a_word_is_stopped(tmp_path):
    path = write_run(tmp_path / "run", config(), state="running")
    assert "running" in shown(path)  # it has just written: nobody looks
    silent(path)
    text = " ".join(shown(path).split())
    assert "stopped without saying so - resume=true goes on" in text


def test_a_silent_run_that_holds_its_lock_is_running(tmp_path):
    with opened(tmp_path / "run") as run:
        run.log("probe", 0, {"kl/exact": 0.0})
        silent(run.path)
        text = shown(run.path)
        assert held(run.path) and "running" in text and "stopped" not in text and "last row 10 s ago" in text
    assert not held(run.path)


def test_a_stopped_run_that_is_gone_on_with_runs_again(tmp_path):
    path = write_run(tmp_path / "run", config(), state="running", steps=(0, 10))
    silent(path)
    watched = Watched(path)
    watched.poll()
    assert watched.state == "stopped" and watched.over
    watched.poll()
    assert watched.state == "stopped"
    with Run.reopen(path, None) as run:
        run.log("probe", 0, {"kl/exact": 0.0})
        watched.poll()
        assert watched.state == "running" and len(watched.metrics.rows) == 1


def test_a_failed_run_shows_the_end_of_its_traceback_and_where_it_is(tmp_path):
    text = shown(write_run(tmp_path / "run", config(), state="failed"))
    assert "failed" in text and "RuntimeError: out of memory" in text
    assert "error.log" in "".join(text.split())  # a long path is folded


def test_events_are_shown_and_cannot_steer_the_terminal(tmp_path):
    with opened(tmp_path / "run") as run:
        for step in range(5):
            run.event("kl", step, f"step {step}: \x1b[31mfar\x1b]0;pwned\x07 [bold]off[/bold]")
        text = shown(run.path)
    assert "2 earlier events" in text and "step 1:" not in text and "step 4:" in text
    assert "\x1b" not in text and "\x07" not in text and "[bold]off[/bold]" in text


def test_a_tail_reads_whole_lines_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    assert not tail.poll() and tail.rows == []
    file.write_text('{"step": 1}\n{"step": 2')
    assert tail.poll() and tail.rows == [{"step": 1}]
    assert not tail.poll()
    with file.open("a") as more:
        more.write('}\n{"step": 3}\n')
    assert tail.poll() and tail.rows == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("lines", [[1, 2], [1, 2, 33333, 4, 5], []])
def test_a_file_that_a_resume_cut_back_is_read_anew(tmp_path, lines):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"v": 1}\n{"v": 2}\n{"v": 3}\n')
    (tail := Tail(file)).poll()
    file.write_text("".join(json.dumps({"v": line}) + "\n" for line in lines))
    assert tail.poll() and [row["v"] for row in tail.rows] == lines


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert watch_view.sparkline([0, 7, 3.5], 10) == "▁█▅"
    assert watch_view.sparkline([2, 2], 10) == "▄▄"
    assert watch_view.sparkline([0, 0, 0, 1, 1, 1], 2) == "▁█"
    assert watch_view.sparkline([], 10) == ""


def test_a_folder_shows_all_its_runs_the_live_ones_first(tmp_path):
    write_run(tmp_path / "a-finished", config())
    write_run(tmp_path / "stages" / "reward", config())
    (tmp_path / "compare").mkdir()
    with opened(tmp_path / "z-live"):
        lines = shown(tmp_path).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["z-live", "running"], ["a-finished", "finished"], ["reward", "finished"],
    ]  # fmt: skip


def test_the_watch_ends_when_all_runs_named_are_over_but_not_that_of_a_folder(tmp_path):
    done = write_run(tmp_path / "done", config())
    for paths, over in (([done], True), ([tmp_path], False)):
        watcher = watch.Watcher(paths)
        watcher.poll()
        assert watcher.over is over
    with opened(tmp_path / "live") as run:
        (watcher := watch.Watcher([done, run.path])).poll()
        assert not watcher.over


@pytest.mark.parametrize(
    ("arguments", "named"),
    [([], "name at least one"), (["nosuch"], "no such run directory"), (["--live"], "not understood"),
     (["twice=true"], "not understood"), (["."], "is not a run directory")],
)  # fmt: skip
def test_a_command_line_that_is_wrong_is_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert watch.main(arguments) == 1
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1


def test_a_damaged_run_directory_is_one_line(tmp_path, capsys):
    path = write_run(tmp_path / "run", config())
    (path / "meta.json").write_text("{")
    assert watch.main([str(path)]) == 1
    assert "is damaged" in capsys.readouterr().err
    with pytest.raises(RunError):
        Watched(path)


def test_ctrl_c_leaves_quietly(tmp_path, monkeypatch, capsys):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "watch", interrupted)
    assert watch.main([str(write_run(tmp_path / "run", config()))]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_terminal_is_watched_until_the_run_is_over(tmp_path, monkeypatch):
    run = opened(tmp_path / "run")
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            run.__exit__(None, None, None)

    monkeypatch.setattr(watch.time, "sleep", nap)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    watch.watch([run.path], console, once=False)
    assert len(naps) == 2 and "finished" in console.file.getvalue()


def test_help_says_what_it_does(capsys):
    assert watch.main(["--help"]) == 0
    assert "once=true" in capsys.readouterr().out
