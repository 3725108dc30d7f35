"""A run directory that somebody sent, or that was damaged: nothing outside it is touched, nothing in it waited for."""

from __future__ import annotations

import json
import os

import pytest

from align.files import write_text
from align.locks import lock
from align.places import newest, place
from align.runs import Run, RunError
from tests.runs.test_places import META, cut_off, settings

# --- links ---


LINKED = ("checkpoints", "checkpoints/step-000001", "checkpoints/.step-000001.tmp", "adapter", "adapter/weights",
          "model", "start", "tensorboard", "sent", "vllm.log", ".lock", "metrics.jsonl", "status.json",
          "report.html")  # fmt: skip


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
