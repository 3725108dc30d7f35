"""Strings for people: numbers with their signs, config values as one types them, and model output made harmless."""

from __future__ import annotations

import json
import sys
from typing import Any

from align.refusals import on_one_line

MISSING = "–"
# Control characters become their pictures (ESC is ␛), so that no completion can steer a terminal or break an SVG file.
# Characters that reorder, break or hide text, C1 controls and lone surrogates, which UTF-8 cannot hold, become U+FFFD.
_REORDERING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HIDING = (0xAD, 0x200B, 0x2028, 0x2029, 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080))
_UNSHOWABLE = (*range(0x80, 0xA0), *_REORDERING, *_HIDING, *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(_UNSHOWABLE, 0xFFFD)


def visible(text: str) -> str:
    """The text with every control character shown instead of obeyed. Line feeds and tabs stay."""
    return text.translate(_VISIBLE)


def complain(message: object) -> None:
    """What is wrong, on stderr. A message may quote what a file or a model said."""
    print(f"error: {visible(str(message))}", file=sys.stderr)


def one_line(text: str) -> str:
    return on_one_line(visible(text))


def config_value(value: Any) -> str:
    """A config value as it is written in an override: null, true, 0.1, [1, 2], plain text."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """1234.5 -> 1,234.50 with two decimals; a true minus; never "-0.00"."""
    if value is None:
        return MISSING
    rounded = round(value, decimals) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{'+' if sign and rounded else ''},.{decimals}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: 42 s, 12 min, 3.4 h."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listing(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
