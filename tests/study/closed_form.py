"""What an exact study's module has: two closed forms. CALLS counts how often they were computed."""

from __future__ import annotations

import math
from types import SimpleNamespace

CALLS: list[int] = []


def compute():
    CALLS.append(1)
    half = SimpleNamespace(
        name="half", expected=0.5, found=math.cos(math.pi / 3), tolerance=1e-9, source="trigonometry"
    )
    return SimpleNamespace(checks=(half,), tables={"powers": [{"n": 2.0, "of <b>": "4"}]})
