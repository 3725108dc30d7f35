"""How a setting is refused: with its key, its value and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """The config is wrong; the message names key, value and fix."""


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key, value in given.items():
        if key not in known:
            where = shown(f"{prefix}.{key}" if prefix else key)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            fix = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}={value!r}: there is no such key; {fix}")


def need(ok: bool, key: str, value: Any, fix: str) -> None:
    if not ok:
        raise ConfigError(f"{shown(key)}={shown(value)}: {fix}")


def reachable(key: str, path: str | None) -> None:
    """Refused here what the system would not even look at, wherever it was looked for."""
    try:
        Path(path or ".").expanduser().exists()
    except (OSError, RuntimeError) as error:  # too long, in a folder without permission; ~NAME of no user
        need(False, key, path, f"cannot be a path here: {getattr(error, 'strerror', None) or error}")


def shown(value: Any) -> str:
    """As it was typed; escaped where that would break the line or steer the terminal."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def first_line(error: BaseException) -> str:
    """Of what a library says; the name of its exception where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def one_of(value: Any, options: Sequence[str], key: str) -> None:
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(f"{shown(key)}={shown(value)}: must be one of {', '.join(options)}{hint}")


def finite(value: float, key: str, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    inside = (low < value if open_low else low <= value) and value <= high and not math.isnan(value)
    bounds = f"{'>' if open_low else '>='} {low:g}" + ("" if math.isinf(high) else f" and <= {high:g}")
    need(inside and (math.isfinite(value)), key, value, f"must be {bounds}")


def positive(value: int, key: str) -> None:
    need(value >= 1, key, value, "must be >= 1")
