"""A run directory that somebody sent, or that was damaged: nothing outside it is touched, nothing in it waited for."""

from __future__ import annotations

import errno
import json
import os
import socket

import pytest

from align import compare
from align.files import write_text
from align.locks import held, lock
from align.places import newest, place
from align.report.arms import load
from align.rows import RunError
from align.runs import Run, read
from align.watch_view import LOG, _last_lines
from align.watched import Watched, find
from tests.runs.fake_runs import config, write_run
from tests.runs.test_places import META, cut_off, settings

# --- links ---


LINKED = ("checkpoints", "checkpoints/step-000001", "checkpoints/.step-000001.tmp", "adapter", "adapter/weights",
          "model", "start", "tensorboard", "sent", "vllm.log", ".lock", "metrics.jsonl", "status.json",
          "report.html", "initial_adapter/adapter_config.json", "of/no/run")  # fmt: skip


def elsewhere(tmp_path):
    """A folder that a link may lead to, and what is in it."""
    folder = tmp_path / "elsewhere"
    (folder / "step-000001").mkdir(parents=True)
    (folder / "step-000001" / "thesis.tex").write_text("years of work")
    return folder, lambda: sorted((path, path.stat().st_size) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", LINKED)
def test_a_run_directory_with_a_link_in_it_is_not_gone_on_with(tmp_path, name):
    target, content = elsewhere(tmp_path)
    run, before = tmp_path / "run", content()
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(target if "." not in name[1:] and name != ".lock" else target / "new")
    with pytest.raises(RunError, match=f"{name} is a link"):
        Run.reopen(run, None)
    assert content() == before and [path.name for path in run.iterdir()] == [name.partition("/")[0]]


def test_nor_is_a_new_run_locked_through_a_link(tmp_path):
    target, content = elsewhere(tmp_path)
    run, before = tmp_path / "run", content()
    run.mkdir()
    (run / ".lock").symlink_to(target / "new")
    with pytest.raises(RunError, match=r"\.lock is a link"):
        Run.create(run, {}, {})
    with pytest.raises(OSError):
        lock(run)
    assert content() == before


def test_nor_are_checkpoints_looked_for_through_one(tmp_path):
    e = settings(tmp_path, "resume=true")
    run = cut_off(place(e), e)
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="checkpoints is a link"):
        newest(place(e), META)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_the_run_directory_itself_and_what_wandb_makes_in_it_may_be_links(tmp_path):
    (tmp_path / "disk" / "wandb").mkdir(parents=True)
    (tmp_path / "disk" / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    Run.reopen(tmp_path / "run", None)


def test_a_pipe_is_not_written_to_either(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match="is a link or a pipe"):
        Run.reopen(tmp_path, None)


def test_a_page_goes_into_a_file_of_its_own(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / f"report.html.{os.getpid()}.tmp").symlink_to(victim)
    write_text(tmp_path / "report.html", "a page")
    assert victim.read_text() == "precious\n" and (tmp_path / "report.html").read_text() == "a page"


# --- a config that no run wrote ---


STRANGE = ("a: &a [*a]", "[" * 3000, "1: a\nb: c", "a: 2020-01-02", "a: !!binary aGk=", "a: !!set {b}", '!!int ""',
           "a: !!timestamp b", "a: .nan", "a: 0b_", "? [a]\n: b", '"\\uD800": "\\uD800"', "null")  # fmt: skip


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize("meta", [False, True])
def test_resume_in_the_folder_of_a_strange_config_is_refused_in_a_sentence(tmp_path, text, meta):
    (tmp_path / "config.yaml").write_text(text)
    if meta:
        (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(RunError) as refused:
        place(settings(tmp_path, f"run_dir={tmp_path}", "resume=true"))
    assert "\n" not in str(refused.value) and (tmp_path / "config.yaml").read_text() == text


@pytest.mark.parametrize("meta", [False, True])
def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path, meta):
    os.mkfifo(tmp_path / "config.yaml")
    if meta:
        (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(RunError, match="is not a run directory"):
        place(settings(tmp_path, f"run_dir={tmp_path}", "resume=true"))


def test_differences_to_a_strange_config_are_one_line(tmp_path):
    cut_off(place(settings(tmp_path, f"run_dir={tmp_path}/run")), settings(tmp_path))
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"a\nb": "c\nd"}))
    with pytest.raises(RunError, match="another experiment") as refused:
        place(settings(tmp_path, f"run_dir={tmp_path}/run", "resume=true"))
    assert "\n" not in str(refused.value)


# --- what is read of it ---


def test_the_traceback_of_a_watched_run_is_no_pipe_and_not_read_whole(tmp_path):
    run = write_run(tmp_path / "run", config(), state="failed")
    (run / "error.log").write_text("x\n" * LOG + "é\nOutOfMemory: the last line")
    assert _last_lines(run / "error.log") == ["x", "x", "é", "OutOfMemory: the last line"]
    with (run / "error.log").open("r+b") as file:
        file.truncate(2**40)  # a terabyte of nothing
    assert _last_lines(run / "error.log") == ["\0" * LOG]
    for name in ("pipe", "endless"):
        os.mkfifo(tmp_path / name) if name == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
        assert _last_lines(tmp_path / name) == []


@pytest.mark.parametrize("odd", ["pipe", "link", "socket", "folder"])
def test_whether_a_run_is_held_is_asked_of_no_pipe_and_through_no_link(tmp_path, monkeypatch, odd):
    if odd == "pipe":
        os.mkfifo(tmp_path / ".lock")
    elif odd == "link":
        lock(tmp_path / "other")
        (tmp_path / ".lock").symlink_to("other")
    elif odd == "folder":
        (tmp_path / ".lock").mkdir()
    else:
        monkeypatch.chdir(tmp_path)  # the name of a socket has at most 107 characters
        socket.socket(socket.AF_UNIX).bind(".lock")
    assert held(tmp_path) is False


# --- another user's: the tests may run as root, who is let in everywhere ---


@pytest.fixture
def closed(monkeypatch):
    """A function that closes files and folders, with all that is in them, to this process."""
    shut: list[str] = []
    stat, scandir, listdir, opened, access = os.stat, os.scandir, os.listdir, os.open, os.access

    def inside(path) -> bool:
        return isinstance(path, str | os.PathLike) and any(os.fspath(path).startswith(f"{name}/") for name in shut)

    def guarded(call, own: bool):
        def guard(path=".", *rest, **named):
            if inside(path) or (own and os.fspath(path) in shut):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *rest, **named)

        return guard

    for name, call, own in (("stat", stat, False), ("scandir", scandir, True), ("listdir", listdir, True),
                            ("open", opened, True)):  # fmt: skip
        monkeypatch.setattr(os, name, guarded(call, own))
    monkeypatch.setattr(
        os, "access", lambda path, how: not inside(path) and str(path) not in shut and access(path, how)
    )
    return lambda *paths: shut.extend(map(str, paths))


def test_another_users_run_is_passed_over_in_a_folder_and_refused_by_name(tmp_path, closed, capsys):
    mine, theirs, unread = (write_run(tmp_path / name, config(seed=n)) for n, name in enumerate(("a", "b", "c")))
    closed(theirs, unread / "config.yaml")
    assert find(tmp_path) == [mine] == compare.parse([str(tmp_path)])[0]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{path} is left out: it cannot be read" for path in (theirs, unread)]
    for ask in (find, read, compare._runs_in):
        with pytest.raises(RunError, match=f"{theirs} cannot be .*: Permission denied$"):
            ask(theirs)


def test_a_folder_of_runs_that_cannot_be_listed_is_said(tmp_path, closed):
    write_run(tmp_path / "runs" / "a", config())
    closed(tmp_path / "runs")
    for ask in (find, compare._runs_in):
        with pytest.raises(RunError, match="runs cannot be looked into: Permission denied$"):
            ask(tmp_path / "runs")


def test_nobody_can_tell_whether_another_users_run_is_held(tmp_path, closed):
    """Neither stopped, nor waited for: a sweep goes on to its place, and is refused there."""
    run = write_run(tmp_path / "run", config(), state="running")
    closed(run / ".lock")
    assert held(run) is None
    assert load([run])[0].record.state == "running"
    watched = Watched(run)
    os.utime(run / "metrics.jsonl", (0, 0))
    os.utime(run / "status.json", (0, 0))
    watched.poll()
    assert watched.state == "running"
    with pytest.raises(RunError, match=f"run_dir={run} cannot be written: Permission denied"):
        Run.reopen(run, None)


def test_a_comparison_of_another_users_run_does_not_blame_out(tmp_path, closed, monkeypatch):
    run = write_run(tmp_path / "run", config())
    monkeypatch.setattr(compare, "_figures", lambda _: [])
    closed(run / ".lock")
    assert compare.compare([run], tmp_path / "first").is_file()
    closed(run)
    with pytest.raises(RunError, match=f"^{run} cannot be read"):
        compare.compare([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="out=.*/out cannot be written"):
        compare.compare([write_run(tmp_path / "mine", config())], tmp_path / "out")


def test_resume_where_another_users_runs_are_is_refused_in_a_sentence(tmp_path, closed):
    e = settings(tmp_path, "resume=true")
    run = cut_off(place(e), e)
    closed(run)
    with pytest.raises(RunError, match="cannot be used: Permission denied"):
        place(e)
    closed(tmp_path / "runs")
    with pytest.raises(RunError, match="cannot be used: Permission denied"):
        place(e)
