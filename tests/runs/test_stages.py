"""Stages that runs share: made once, by one process at a time, and not begun where they could not be kept."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from align import stages
from align.rows import RunError
from tests.config.test_conf import composed


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
