"""JSON with finite numbers alone: what a run writes. Anything else in its files is damage, whoever reads them."""

from __future__ import annotations

import json
from typing import Any

MOST_DIGITS = 19  # 2^63
LARGEST = 1e150  # beyond, a variance overflows


def parsed(text: str) -> Any:
    """JSON as it is written here: numbers are finite. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_real, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _real(text: str) -> float:
    number = float(text)
    if abs(number) > LARGEST:
        raise ValueError("a number too large")
    return number


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number of too many digits")
    return int(text)
