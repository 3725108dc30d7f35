"""JSON with finite numbers alone, and YAML that says no more, but for the infinity that a setting may be: what a run
writes. Anything else in its files is damage, whoever reads them."""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

MOST_DIGITS = 19  # 2^63
LARGEST = 1e150  # beyond, a variance overflows


def parsed(text: str) -> Any:
    """JSON as it is written here: numbers are finite. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_real, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Plain(yaml.SafeLoader):
    """Without anchors, by which a few lines hold themselves, or a billion others, and without tags: SafeLoader raises
    whatever it likes for one whose text does not fit (`!!int ""` an IndexError)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("an alias, which no run writes")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("a tag, which no run writes")
        return super().compose_node(parent, index)


def parsed_yaml(text: str) -> Any:
    """YAML whose keys are texts and whose values are texts, numbers, truths and nothings. Raises ValueError and
    yaml.YAMLError."""
    loader = _Plain(text)
    try:
        value = loader.get_single_data()  # type: ignore[no-untyped-call]
        _plain(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]
    return value


def _plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r}, which is no text")
            _plain(part)
    elif isinstance(value, list):
        for part in value:
            _plain(part)
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise ValueError("a number of too many digits")
    elif isinstance(value, float) and math.isnan(value):  # data.labels.sharpness=inf is a setting
        raise ValueError(f"{value} is no number")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"a {type(value).__name__}, which no run writes")


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
