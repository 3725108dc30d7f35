"""One damaged line in what a run wrote: a page is made without its file and says so, and a run can be gone on with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from align import compare
from align.report.arms import group, load
from align.report.checks import warnings
from align.runs import RunError
from align.study.verdict import read_arms
from tests.runs.fake_runs import config, write_run

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
    assert name in said and "Nothing of this file is used" in said
    assert f"{name}" in compare.report(run).read_text("utf-8")


def test_so_does_a_comparison_and_its_warning_is_on_page_and_terminal(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_figures", lambda _: [])
    spoil(run / "samples.jsonl", "{", number=3)
    assert compare.main([str(run), f"out={tmp_path / 'out'}"]) == 0
    said = "line 4: not JSON. Nothing of this file is used"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (tmp_path / "out" / "summary.md").read_text("utf-8")


def test_a_verdict_is_not_given_without_them(run):
    spoil(run / "samples.jsonl", "{")
    with pytest.raises(RunError, match=r"samples\.jsonl, line 1"):
        read_arms([SimpleNamespace(arm="plain")], [run])


def test_damaged_numbers_are_refused_with_file_and_line(run):
    spoil(run / "metrics.jsonl", "{", number=1)
    for ask in (load, lambda paths: compare.report(*paths)):
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
            ask([run])
