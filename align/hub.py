"""Hub ids -> local folders. The cache is asked first; the hub is asked once, and a missing hub is reported at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.embedded import ModelError
from align.refusals import first_line

# Safetensors only: a pickle from a hub is code from a hub.
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
TIMEOUT_S = 10.0


class HubError(ValueError):
    """No snapshot can be had; the message is the hub's answer."""


class NoHubId(HubError):
    """The name has not the form of a hub id (owner/name)."""


def hub_folder(repo: str) -> Path:
    """The snapshot of a model repository. Raises ModelError with the hub's answer and the way out."""

    def complete(folder: Path) -> bool:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))

    try:
        return snapshot(repo, WANTED, complete)
    except NoHubId:
        raise ModelError(
            f"model.path={repo}: it is neither a folder, nor a .gguf file, nor the form of a hub id (owner/name)"
        ) from None
    except HubError as error:
        raise ModelError(
            f"model.path={repo}: no local folder of that name, not in the hub's local cache, and the hub did not give "
            f"it ({error})\nWithout a hub: model.path=FOLDER or model.path=FILE.gguf with these weights, or "
            "model=smollm2-135m, which needs none"
        ) from error


def snapshot(repo: str, wanted: Sequence[str], complete: Callable[[Path], bool], **which: str | None) -> Path:
    """The folder with the wanted files: of the hub's cache when it is complete there, else from the hub.

    which   repo_type ("dataset"; a model without) and revision. Raises HubError.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    asked: dict[str, Any] = {**which, "allow_patterns": list(wanted)}
    try:
        cached = Path(snapshot_download(repo, local_files_only=True, **asked))
        if complete(cached):
            return cached
    except HFValidationError as error:
        raise NoHubId(str(error)) from None
    except LocalEntryNotFoundError:
        pass
    try:
        HfApi().repo_info(repo, timeout=TIMEOUT_S, **which)
        return Path(snapshot_download(repo, **asked))
    except Exception as error:
        raise HubError(first_line(error)) from error
