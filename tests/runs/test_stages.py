"""Stages that runs share: made once, by one process at a time, and not begun where they could not be kept."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from align import stages
from align.rows import RunError
from tests.config.test_conf import composed
from tests.runs.test_places import Place, cut_off, settings


@pytest.fixture
def sampled(monkeypatch):
    """How often a pool was sampled; what is written and read is its path."""
    times = list[int]()
    monkeypatch.setattr(stages, "pool_key", lambda *_: "0123456789abcdef")
    monkeypatch.setattr(stages, "_sampled", lambda *_: times.append(1) or "sampled")
    monkeypatch.setattr(stages, "write_pool", lambda path, pool: path.write_text(pool))
    monkeypatch.setattr(stages, "read_pool", lambda path, asked: path.read_text())
    return times


def answered(root) -> str:
    e = composed("model=tiny", f"runs_root={root}")
    return stages.answered(e.data, e, SimpleNamespace(fingerprint="a"), stages.pool_prompts())


def test_a_pool_is_sampled_once(tmp_path, sampled):
    assert [answered(tmp_path), answered(tmp_path)] == ["sampled", "sampled"]
    assert sampled == [1]


def test_a_pool_that_another_process_is_sampling_is_waited_for(tmp_path, sampled, monkeypatch, capsys):
    @contextmanager
    def waiting(path, say):
        say()
        path.parent.mkdir()
        path.with_suffix(".gz").write_text("the other's")
        yield

    monkeypatch.setattr(stages, "waiting", waiting)
    assert answered(tmp_path) == "the other's" and sampled == []
    assert "another process is sampling this pool: waiting for" in capsys.readouterr().out


def test_where_a_pool_could_not_be_kept_none_is_sampled(tmp_path, sampled):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"^runs_root: {tmp_path}/file/stages cannot be written: Not a directory$"):
        answered(tmp_path / "file")
    assert sampled == []


def test_a_folder_of_stages_that_is_closed_is_said(tmp_path, sampled, monkeypatch):
    real = Path.is_file

    def closed(path):
        if path.parent == tmp_path / "stages":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(RunError, match="stages cannot be looked into: Permission denied"):
        answered(tmp_path)


# --- reward models ---


def test_of_a_reward_models_run_what_is_finished_or_of_this_experiment_is_kept(tmp_path):
    again, other = settings(tmp_path, "resume=true"), settings(tmp_path, "resume=true", "steps=9")
    path = tmp_path / "reward"
    assert stages._earlier(path, again) == "of no use"
    cut_off(Place(path), again)
    (path / "metrics.jsonl").open("a").write("?\n")  # goes on from a checkpoint before it
    assert stages._earlier(path, again) == "to go on with"
    assert stages._earlier(path, other) == stages._earlier(path, settings(tmp_path)) == "of no use"
    (path / "status.json").write_text("?")
    assert stages._earlier(path, again) == "to go on with"
    (path / "status.json").write_text('{"state": "finished"}')
    assert stages._earlier(path, settings(tmp_path)) == "finished"


def test_one_that_another_process_is_removing_is_waited_for(tmp_path, monkeypatch):
    e = settings(tmp_path, f"run_dir={tmp_path}/reward")
    path, trained = cut_off(Place(tmp_path / "reward"), e), []
    (path / "config.yaml").unlink()

    @contextmanager
    def waiting(_, say):
        (path / "meta.json").unlink()
        yield

    monkeypatch.setattr(stages, "waiting", waiting)
    stages._once(e, trained.append)
    assert trained == [e] and not path.exists()


@pytest.mark.parametrize("file", ["status.json", "config.yaml", "meta.json"])
def test_one_that_cannot_be_told_is_not_removed(tmp_path, file):
    """Trained again it may come out another, with which what it scored could not go on."""
    e = settings(tmp_path, f"run_dir={tmp_path}/reward")
    path = cut_off(Place(tmp_path / "reward"), e, state="finished")
    (path / file).write_text("{")
    with pytest.raises(RunError, match=f"damaged.*; it is a reward model's: remove {path} to train it again"):
        stages._once(e, lambda _: pytest.fail("trained again"))
    assert (path / "checkpoints").is_dir()
