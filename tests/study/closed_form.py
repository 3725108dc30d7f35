"""What an exact study's module has: two closed forms. CALLS counts how often they were computed."""

from __future__ import annotations

import math

from align.exact import Check, Exact, Figure, Panel

CALLS: list[int] = []


def compute():
    CALLS.append(1)
    half = Check("half", 0.5, math.cos(math.pi / 3), 1e-9, "trigonometry")
    figure = Figure("Powers <i>", (Panel("Squares <u>", "powers", "n", {"of <b>": "square"}, ("n", "of <b>")),))
    return Exact((half,), {"powers": [{"n": 2.0, "of <b>": 4}]}, figure)
