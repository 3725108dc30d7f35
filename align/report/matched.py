"""Values of arms at the same KL, or after the same number of generated tokens, rather than at the same step.

A path is what one run passed through, in step order: (x, value) at each probe, x the KL to the reference, the tokens
generated so far, or whatever else arms are to be matched on. With x the gold reward and KL the value, the same
functions say how far each arm had drifted when it first reached that gold.

KL is not monotone. A level counts as reached at the first probe whose x is at or above it, and the value is that of the
straight line from the probe before. Where the path falls below the level again and returns, that is not looked at.
Nothing is extrapolated: a path that never comes to a level from below has no value there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

Path = Sequence[tuple[float, float]]  # (x, value) in step order
Paths = Mapping[str, Path]  # seed -> path, of one arm


def levels(arms: Sequence[Paths]) -> tuple[float, ...]:
    """Where to compare: the largest x that every seed of every arm reached, and half-way to it from the start.

        top = min over seeds of max x,   start = max over seeds of the first x,   (start + top) / 2 and top

    Empty where some seed has no path or did not move: then there is no x at which all can be compared.
    """
    paths = [path for arm in arms for path in arm.values()]
    if not paths or not all(paths):
        return ()
    start = max(path[0][0] for path in paths)
    top = min(max(x for x, _ in path) for path in paths)
    return ((start + top) / 2, top) if top > start else ()


def values_at(arm: Paths, level: float) -> dict[str, float]:
    """Seed -> value where its path first reaches the level; seeds that never do are left out (`levels` has none)."""
    found = {seed: value_at(path, level) for seed, path in arm.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def value_at(path: Path, level: float) -> float | None:
    """The value where x first reaches the level, on the straight line between the two probes around it.

    value = v0 + (v1 - v0) (level - x0) / (x1 - x0),   x0 < level <= x1
    """
    if path and path[0][0] == level:
        return path[0][1]
    for (x0, v0), (x1, v1) in pairwise(path):
        if x0 < level <= x1:
            return v0 + (v1 - v0) * (level - x0) / (x1 - x0)
    return None


def swapped(arm: Paths) -> dict[str, list[tuple[float, float]]]:
    """Paths with x and value exchanged: from gold at a KL to the KL at which a gold reward is first reached."""
    return {seed: [(value, x) for x, value in path] for seed, path in arm.items()}
