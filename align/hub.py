"""Hub ids -> local folders. The cache is asked first; the hub is asked once, and a missing hub is reported at once."""

from __future__ import annotations

import os
from pathlib import Path

from align.embedded import ModelError

# Safetensors only: a pickle from a hub is code from a hub.
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
TIMEOUT_S = 10.0


def hub_folder(repo: str) -> Path:
    """The snapshot of a model repository. Raises ModelError with the hub's answer and the way out."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(repo, allow_patterns=list(WANTED), local_files_only=True))
        if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
            return cached
    except HFValidationError:
        raise ModelError(
            f"model.path={repo}: it is neither a folder, nor a .gguf file, nor the form of a hub id (owner/name)"
        ) from None
    except LocalEntryNotFoundError:
        pass
    try:
        HfApi().model_info(repo, timeout=TIMEOUT_S)
        return Path(snapshot_download(repo, allow_patterns=list(WANTED)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path={repo}: no local folder of that name, not in the hub's local cache, and the hub did not give "
            f"it ({reason})\nWithout a hub: model.path=FOLDER or model.path=FILE.gguf with these weights, or "
            "model=smollm2-135m, which needs none"
        ) from error
