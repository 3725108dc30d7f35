"""One damaged line in what a run wrote: a page is made without its file and says so, and a run can be gone on with."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from types import SimpleNamespace
from warnings import catch_warnings, simplefilter

import pytest

from align import compare, experiment
from align.checkpoints import snapshots, write
from align.locks import held
from align.places import newest, place
from align.report.arms import group, load
from align.report.checks import warnings
from align.rows import RunError
from align.runs import Run, read
from align.study.verdict import read_arms
from tests.runs.fake_runs import config, write_run
from tests.runs.test_places import META, cut_off, settings

DAMAGED = [("samples.jsonl", '{"step": 0, "sam'), ("samples.jsonl", "[1]"), ("samples.jsonl", '{"sample": "x"}'),
           ("events.jsonl", "\0\0\0")]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", config(), events=[("kl", 10, "far")])


def spoil(file, text: str, number: int = 0) -> None:
    """A line before the one of this number, counted from 0."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:number], f"{text}\n", *lines[number:]]))


# --- pages ---


@pytest.mark.parametrize(("name", "text"), DAMAGED)
def test_a_finished_run_gets_its_page_without_a_damaged_file_beside_its_numbers(run, monkeypatch, name, text):
    monkeypatch.setattr(compare, "_figures", lambda _: [])
    whole = load([run])
    spoil(run / name, text)
    (found,) = load([run])
    assert found.probes == whole[0].probes
    assert not (found.samples if name == "samples.jsonl" else found.events)
    (said,) = warnings(*group([found]))
    assert str(run / name) in said and "Nothing of this file is used" in said
    assert f"{name}" in compare.report(run).read_text("utf-8")


def test_so_does_a_comparison_and_its_warning_is_on_page_and_terminal(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_figures", lambda _: [])
    spoil(run / "samples.jsonl", "{", number=3)
    assert compare.main([str(run), f"out={tmp_path / 'out'}"]) == 0
    said = "line 4: not JSON. Nothing of this file is used"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (tmp_path / "out" / "summary.md").read_text("utf-8")


def test_a_page_that_cannot_be_written_is_said(run, monkeypatch):
    monkeypatch.setattr(compare, "_figures", lambda _: [])
    (run / "report.html").unlink(missing_ok=True)
    (run / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html cannot be written: Is a directory; once it can, resume=true"):
        compare.report(run)


def test_a_verdict_is_not_given_without_them(run):
    spoil(run / "samples.jsonl", "{")
    with pytest.raises(RunError, match=r"samples\.jsonl, line 1"):
        read_arms([SimpleNamespace(arm="plain")], [run])


def test_damaged_numbers_are_refused_with_file_and_line(run):
    spoil(run / "metrics.jsonl", "{", number=1)
    for ask in (load, lambda paths: compare.report(*paths)):
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
            ask([run])


# --- going on ---


@pytest.fixture
def stopped(tmp_path):
    """A run of three rows with a checkpoint after each, and one row more; and its experiment."""
    e = settings(tmp_path, "resume=true")
    path = cut_off(place(e), e, rows=3)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "step": 4}\n')
    return path, e


def gone_on(e):
    """Where a run goes on, after which its rows are whole."""
    where = place(e)
    start = newest(where, META)
    Run.reopen(where.path, start.run if start else None, where.before)
    assert [row["step"] for row in read(where.path).rows] == list(range(1, 1 + (start.step if start else 0)))
    return start.step if start else 0


@pytest.mark.parametrize("text", ["{", "[]", "\0\0", '{"step": -1}', '{"loss": "low"}'])
def test_a_damaged_row_after_the_checkpoint_is_cut_with_the_others(stopped, text):
    path, e = stopped
    spoil(path / "metrics.jsonl", text, number=3)
    with catch_warnings():
        simplefilter("error")
        assert gone_on(e) == 3


@pytest.mark.parametrize(("number", "step"), [(0, 0), (1, 1), (2, 2)])
def test_a_damaged_row_before_it_sends_the_run_further_back(stopped, number, step):
    path, e = stopped
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[number] = "?" * (len(lines[number]) - 1) + "\n"
    (path / "metrics.jsonl").write_text("".join(lines))
    with pytest.warns(UserWarning, match=rf"step 3: .*metrics\.jsonl, line {number + 1}: not JSON; the one before it"):
        assert gone_on(e) == step


@pytest.mark.parametrize("text", ["{", "[]", "", "\0", '{"state": ["finished"]}'])
def test_a_damaged_status_is_that_of_a_run_to_go_on_with(stopped, text):
    path, e = stopped
    (path / "status.json").write_text(text)
    assert place(e).before.state == "unknown"
    assert gone_on(e) == 3


@pytest.mark.parametrize("text", ["{", None])
def test_one_of_a_run_that_has_its_page_is_not(stopped, text):
    """Its checkpoints may have been removed to make room: all of it would be trained again."""
    path, e = stopped
    (path / "report.html").touch()
    (path / "status.json").unlink()
    if text is not None:
        (path / "status.json").write_text(text)
    with pytest.raises(RunError, match='page of a finished run.*write {"state": "finished"} into'):
        place(e)


def test_a_checkpoint_that_cannot_be_removed_is_said(stopped, monkeypatch):
    path, e = stopped
    where, full = place(e), path / "checkpoints" / "step-000001"

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(full))

    monkeypatch.setattr(experiment, "prune", refuse)
    with pytest.raises(RunError, match=f"{full} is not gone on from and cannot be removed: Permission denied"):
        experiment._opened(e, where, META, newest(where, META))
    assert read(path).state == "failed" and not held(path)
    monkeypatch.undo()
    assert gone_on(e) == 3


def test_damage_done_since_the_look_is_another_process_at_work(stopped):
    path, e = stopped
    where = place(e)
    spoil(path / "metrics.jsonl", '{"phase": "train", "step": 9}')
    with pytest.raises(RunError, match="another process has gone on with it"):
        Run.reopen(path, None, where.before)


def test_the_rows_of_a_finished_run_are_its_result(stopped):
    path, e = stopped
    (path / "status.json").write_text('{"state": "finished"}')
    spoil(path / "metrics.jsonl", "{", number=3)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 4: not JSON"):
        place(e)


ODD = (None, [], {}, {"sizes": {}}, {"counters": {"prompts": -1}}, {"seconds": "1"}, {"sizes": {"../x": 0}})


@pytest.mark.parametrize("odd", ODD)
def test_a_checkpoint_that_does_not_say_where_its_run_stood_is_passed_over(stopped, odd):
    path, e = stopped
    (whole, *_) = snapshots(path / "checkpoints")
    write(path / "checkpoints", replace(whole, run={**whole.run, **odd} if odd else odd))
    with pytest.warns(UserWarning, match="checkpoint of step 3: it does not say where its run stood"):
        assert gone_on(e) == 2


def test_so_is_one_of_another_step_than_its_name_says(stopped):
    path, e = stopped
    (path / "checkpoints" / "step-000003").rename(path / "checkpoints" / "step-000007")
    with pytest.warns(UserWarning, match="step-000007 is damaged"):
        assert gone_on(e) == 2


def test_a_folder_in_place_of_a_status_is_refused_in_a_sentence(stopped):
    path, e = stopped
    (path / "status.json").unlink()
    (path / "status.json").mkdir()
    with pytest.raises(RunError, match="cannot be written: Is a directory"):
        gone_on(e)
