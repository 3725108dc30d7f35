"""A study that is measured in this process is measured once, until something of it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from align.study import __main__ as cli
from align.study import engine, heads, measured
from tests.study.test_heads import STUDY, made_up, planned


def test_what_is_measured_is_not_measured_again_until_something_of_it_changes(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(heads, "lay", lambda tasks: calls.append(len(tasks)) or made_up(tasks))
    monkeypatch.setattr(engine, "expand", lambda chosen, whole=engine.expand: calls.append("expanded") or whole(chosen))
    few = STUDY | {"seeds": [0, 1, 2]}
    studies = {name: few | {"tiers": {"cpu": ["probe.prompts=30"], "gpu": [f"probe.prompts={many}"]}}
               for name, many in (("one", 20), ("two", 25))}  # fmt: skip

    def run(*more: str, study: str = "one", out: str = "out") -> tuple[dict[Path, tuple[int, bytes]], str]:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(studies[study], allow_unicode=True), encoding="utf-8")
        calls.clear()
        assert cli.main([f"study={tmp_path}/mine.yaml", f"out={tmp_path / out}", f"runs_root={tmp_path}/r", *more]) == 0
        files = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / out).rglob("*.*")}
        return files, capsys.readouterr().out

    first = run()
    assert calls == ["expanded", 9]
    assert run() == first and calls == []  # nothing is composed, measured or written, and the same is said
    for study in ("one", "two"):
        assert run("tier=gpu", study=study, out="gpu") and calls == ["expanded", 9]
    assert run("tier=gpu", study="two", out="gpu") and calls == []


def test_the_source_of_a_verdict_is_the_study_what_is_asked_and_the_code(tmp_path, monkeypatch):
    chosen = planned(tmp_path)
    found = measured.source(chosen)
    assert found == measured.source(replace(chosen, runs_root=tmp_path / "elsewhere"))
    assert found != measured.source(replace(chosen, seeds=(0, 1)))
    assert found != measured.source(replace(chosen, extra=("heads.ridge=2",)))
    (tmp_path / "align/assets").mkdir(parents=True)
    monkeypatch.setattr(measured, "PACKAGE", tmp_path / "align")  # other code
    assert found != measured.source(chosen)
