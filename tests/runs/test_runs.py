"""The contract of the run directory: what is written, what may be missing, what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import yaml

from align.places import covers, free_name
from align.rows import LINES, RunError, read_lines
from align.runs import Run, read, stable


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "runs" / "a run"


def opened(path: Path) -> Run:
    return Run.create(path, {"algo": {"name": "grpo"}, "seed": 0}, {"name": "grpo tiny"})


def state(path: Path) -> dict:
    return json.loads((path / "status.json").read_text())


# --- writing ---


def test_a_new_run_is_running_and_says_what_it_is(path):
    opened(path)
    assert state(path)["state"] == "running"
    assert yaml.safe_load((path / "config.yaml").read_text()) == {"algo": {"name": "grpo"}, "seed": 0}
    assert json.loads((path / "meta.json").read_text()) == {"name": "grpo tiny"}
    assert all((path / f"{name}.jsonl").read_text() == "" for name in ("metrics", "samples", "events"))


def test_a_row_is_on_disk_as_soon_as_it_is_logged(path):
    run = opened(path)
    run.log("train", 1, {"loss": 0.5})
    assert [row["loss"] for row in read_lines(path / "metrics.jsonl")] == [0.5]
    run.log_samples([{"completion": "42"}])
    assert read_lines(path / "samples.jsonl") == [{"completion": "42"}]


def test_rows_carry_what_the_run_has_consumed_so_far(path):
    run = opened(path)
    run.log("probe", 0, {})
    run.count(prompts=2, completions=8, gen_tokens=50)
    run.count(prompts=2, completions=8, gen_tokens=70)
    run.log("train", 1, {})
    rows = [[row[key] for key in ("prompts", "completions", "gen_tokens")] for row in read(path).rows]
    assert rows == [[0, 0, 0], [4, 16, 120]]
    assert all(row["seconds"] >= 0 for row in read(path).rows)


def test_what_is_not_a_finite_number_is_null(path):
    run = opened(path)
    run.log("train", 1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": True, "f": 3})
    text = (path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    (row,) = read(path).rows
    assert [row[key] for key in "abcdef"] == [None, None, None, 1.5, 1, 3]


def test_text_that_is_not_unicode_does_not_stop_a_run(path):
    """A byte-level model can write half of a surrogate pair."""
    texts = ["\ud800", "a\udfffb", "\x00\x1b[31m", "line\nbreak\u2028and\x85more", "ünï 漢 🙂"]
    run = opened(path)
    run.log_samples([{"completion": text} for text in texts])
    assert [row["completion"] for row in read(path, samples=True).samples] == texts


def test_an_event_is_on_disk_at_once_with_what_it_is_about(path):
    opened(path).event("ratio", 3, "a ratio of 9", prompt_id="p1", log_ratio=math.inf, place=2)
    expected = {"kind": "ratio", "step": 3, "what": "a ratio of 9", "prompt_id": "p1", "log_ratio": None, "place": 2}
    assert read_lines(path / "events.jsonl") == [expected]


@pytest.mark.parametrize(
    ("error", "expected"), [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (ValueError("bad"), "failed")]
)
def test_leaving_a_run_writes_how_it_ended(path, error, expected):
    try:
        with opened(path):
            if error is not None:
                raise error
    except BaseException as passed_on:
        assert passed_on is error
    assert state(path)["state"] == expected == read(path).state
    assert state(path)["seconds"] >= 0
    assert (path / "error.log").exists() == (expected == "failed")


def test_a_failure_keeps_its_traceback_and_says_where(path):
    with pytest.raises(ZeroDivisionError) as failure, opened(path):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in state(path)["error"]
    log = (path / "error.log").read_text()
    assert "Traceback" in log and "1 / 0" in log
    assert any(str(path / "error.log") in note for note in failure.value.__notes__)


def test_a_state_that_does_not_exist_is_our_mistake(path):
    with pytest.raises(AssertionError):
        opened(path).status("done")


def test_a_status_is_never_half_written(path, monkeypatch):
    run = opened(path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        run.status("finished")
    assert state(path)["state"] == "running"
    assert list(path.glob("*.tmp")) == []


# --- going on ---


def cut_off(path: Path) -> dict:
    """A run that was killed one step after the position that is returned."""
    run = opened(path)
    for step in (1, 2):
        run.count(prompts=2, completions=8, gen_tokens=50)
        run.log("train", step, {"loss": 0.5})
        run.log_samples([{"step": step, "completion": "é漢"}])
        run.event("kl", step, "far")
        if step == 1:
            position = run.position()
    (path / "error.log").write_text("Traceback")
    os.close(run._lock)  # as the system does for a killed process
    return position


def test_a_run_goes_on_where_it_stood_and_no_row_stands_twice(path):
    position = cut_off(path)
    with Run.reopen(path, json.loads(json.dumps(position))) as run:
        assert state(path)["state"] == "running"
        assert not (path / "error.log").exists()
        run.count(prompts=2, completions=8, gen_tokens=70)
        run.log("train", 2, {"loss": 0.25})
    record = read(path, samples=True)
    assert [(row["step"], row["loss"], row["gen_tokens"]) for row in record.rows] == [(1, 0.5, 50), (2, 0.25, 120)]
    assert [row["step"] for row in record.samples] == [1]
    assert [row["step"] for row in read_lines(path / "events.jsonl")] == [1]
    assert record.meta == {"name": "grpo tiny"} and record.state == "finished"


def test_its_seconds_go_on_too(path):
    position = cut_off(path) | {"seconds": 1000.0}
    assert Run.reopen(path, position).log("train", 2, {})["seconds"] >= 1000


def test_without_a_position_a_run_starts_over(path):
    cut_off(path)
    run = Run.reopen(path, None)
    assert [(path / name).stat().st_size for name in LINES] == [0, 0, 0]
    assert run.counters == {"prompts": 0, "completions": 0, "gen_tokens": 0}


@pytest.mark.parametrize("name", LINES)
def test_files_that_are_shorter_than_they_were_do_not_cover_a_position(path, name):
    position = cut_off(path)
    assert covers(path, position)
    with (path / name).open("ab") as file:
        file.truncate(position["sizes"][name])
    assert covers(path, position)
    with (path / name).open("ab") as file:
        file.truncate(position["sizes"][name] - 1)
    assert not covers(path, position)
    (path / name).unlink()
    assert not covers(path, position)


# --- where ---


def test_a_folder_with_content_is_refused_and_left_alone(path):
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        opened(path)
    assert [file.name for file in path.iterdir()] == ["thesis.tex"]


def test_a_finished_run_is_not_written_over(path):
    with opened(path) as run:
        run.log("probe", 0, {"reward/proxy": 1.0})
    with pytest.raises(RunError, match="not empty"):
        opened(path)
    assert read(path).rows[0]["reward/proxy"] == 1.0


def test_a_file_is_refused(path):
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(RunError, match=str(path)):
        opened(path)


def test_an_empty_folder_is_used(path):
    path.mkdir(parents=True)
    assert opened(path).path == path


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        opened(tmp_path / "file" / "run")


def test_a_free_name_counts_up(tmp_path):
    assert free_name(tmp_path, "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").write_text("")
    assert free_name(tmp_path, "run") == tmp_path / "run-3"


# --- reading ---


def test_a_torn_last_line_is_ignored(path):
    run = opened(path)
    run.log("train", 1, {"loss": 0.5})
    run.log("train", 2, {"loss": 0.25})
    whole = (path / "metrics.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) - 1):  # killed at any byte of the second row but its newline
        (path / "metrics.jsonl").write_bytes(whole[:end])
        assert [row["step"] for row in read(path).rows] == [1]
    (path / "metrics.jsonl").write_bytes(whole[:-1])  # the row is whole, its newline is not there yet
    assert len(read(path).rows) == 2


def test_a_line_torn_within_a_character_is_ignored(path):
    opened(path)
    (path / "samples.jsonl").write_bytes('{"a": 1}\n{"a": "é'.encode()[:-1])
    assert read(path, samples=True).samples == ({"a": 1},)


@pytest.mark.parametrize("damage", ['{"phase": "tr', "\x00\x00\x00", "[1, 2]", "7"])
def test_a_damaged_line_in_the_middle_is_refused_by_number(path, damage):
    run = opened(path)
    run.log("train", 1, {})
    lines = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(f"{lines}{damage}\n{lines}")
    with pytest.raises(RunError) as refusal:
        read(path)
    assert f"{path / 'metrics.jsonl'}, line 2" in str(refusal.value)


@pytest.mark.parametrize("missing", ["config.yaml", "meta.json"])
def test_a_folder_without_config_or_meta_is_no_run(path, missing):
    opened(path)
    (path / missing).unlink()
    with pytest.raises(RunError, match="is not a run directory"):
        read(path)


@pytest.mark.parametrize("file", ["config.yaml", "meta.json", "status.json"])
@pytest.mark.parametrize("content", ["{", "[1, 2]", "\x00", "", "7"])
def test_a_damaged_file_is_named(path, file, content):
    opened(path)
    (path / file).write_text(content)
    with pytest.raises(RunError, match="damaged") as refusal:
        read(path)
    assert str(path) in str(refusal.value)


def test_bytes_that_are_no_text_are_damage_too(path):
    opened(path)
    (path / "status.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(RunError, match="damaged"):
        read(path)


def test_a_run_without_status_or_rows_can_be_read(path):
    opened(path)
    for file in ("status.json", "metrics.jsonl", "samples.jsonl"):
        (path / file).unlink()
    record = read(path, samples=True)
    assert (record.state, record.rows, record.samples) == ("unknown", (), ())


def test_phases_are_read_apart_in_order(path):
    run = opened(path)
    for phase, step in (("probe", 0), ("train", 1), ("train", 2), ("probe", 2)):
        run.log(phase, step, {})
    record = read(path)
    assert [row["step"] for row in record.phase("train")] == [1, 2]
    assert [row["step"] for row in record.phase("probe")] == [0, 2]
    assert record.phase("eval") == []


def test_only_times_and_memory_may_differ_between_two_runs_of_one_config():
    row = {"phase": "train", "loss": 1.0, "seconds": 3.2, "time/update": 0.5, "memory/peak_gb": 2.0, "timeless": 1}
    assert stable(row) == {"phase": "train", "loss": 1.0, "timeless": 1}
