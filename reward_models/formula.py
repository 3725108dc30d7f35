"""A reward as the formula a user types: `learned - 0.01*length`. Parsed, never evaluated as code."""

from __future__ import annotations

import math
import re

_TERM = re.compile(
    r"\s*(?:(?P<sign>[+-])\s*)?(?:(?P<weight>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*\*\s*)?"
    r"(?P<name>[A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)\s*"
)


def parse(formula: str) -> dict[str, float]:
    """`"gold - 0.5*length"` -> `{"gold": 1.0, "length": -0.5}`; `"none"` -> `{}`.

    A name is a reward source, or `package.module:function`. Raises ValueError saying where it stops making sense.
    """
    if formula.strip() == "none":
        return {}
    weights: dict[str, float] = {}
    position = 0
    while position < len(formula):
        match = _TERM.match(formula, position)
        if match is None or (position > 0 and match["sign"] is None):
            raise ValueError(f"cannot read {formula[position:].strip()!r}; write e.g. learned - 0.01*length, or none")
        if match["name"] in weights:
            raise ValueError(f"{match['name']!r} stands twice; add its weights up")
        weight = float(match["weight"] or 1.0)
        if math.isinf(weight):
            raise ValueError(f"the weight of {match['name']} is too large a number")
        weights[match["name"]] = -weight if match["sign"] == "-" else weight
        position = match.end()
    if not weights:
        raise ValueError("it is empty; write e.g. learned - 0.01*length, or none")
    return weights
