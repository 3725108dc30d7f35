"""Alarms: declared rules over a run's rows that say where something may have started to go wrong.

They are diagnostics, not findings: each is a threshold on numbers of one run, and a run that solves its task can set
one off (a solved sum needs no entropy). Rules and thresholds are in `docs/metrics.md`. Standard library only, so that
a running experiment and `align.compare` judge by the same code.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
ALARM = "alarm"  # the kind of the events in which a run notes its alarms

KL_FACTOR, KL_NATS = 3.0, 1.0
ENTROPY_SHARE = 0.3
REP3, REP3_RISE = 0.3, 0.1
LENGTH_Z, LENGTH_SHARE = 3.0, 0.1
GOLD_Z = 3.0  # the best of many probes is high by luck too: 2 would fire in every second run of constant gold
SILENT_SHARE, SILENT_ROWS = 0.5, 5


@dataclass(frozen=True)
class Alarm:
    step: int
    kind: str  # a key of RULES
    what: str  # a sentence with the numbers


@dataclass
class Watcher:
    """Sees the rows of one run in order and says which alarm each sets off; every kind is raised once."""

    probes: list[Row] = field(default_factory=list)
    trained: deque[Row] = field(default_factory=lambda: deque(maxlen=SILENT_ROWS))
    raised: set[str] = field(default_factory=set)

    def see(self, row: Row) -> list[Alarm]:
        phase = row.get("phase")
        if phase not in ("probe", "train") or not isinstance(row.get("step"), int):
            return []
        (self.probes if phase == "probe" else self.trained).append(row)
        found = []
        for kind, (of, rule) in RULES.items():
            if of == phase and kind not in self.raised and (what := rule(self)):
                self.raised.add(kind)
                found.append(Alarm(row["step"], kind, what))
        return found


def alarms(rows: Iterable[Row]) -> list[Alarm]:
    """The first alarm of each kind in rows of `metrics.jsonl`, in order of appearance."""
    watcher = Watcher()
    return [alarm for row in rows for alarm in watcher.see(row)]


def kl_acceleration(seen: Watcher) -> str | None:
    """KL since the last probe grew 3 times as fast per step as on average before, and by 1 nat or more."""
    points = [(row["step"], kl) for row in seen.probes if (kl := _first(row, "kl/exact", "kl/k1")) is not None]
    if len(points) < 4 or points[-1][0] == points[-2][0]:
        return None
    (start, first), (before, then), (step, now) = points[0], points[-2], points[-1]
    rate, earlier = (now - then) / (step - before), (then - first) / (before - start)
    if now - then < KL_NATS or rate <= KL_FACTOR * max(earlier, 0.0):
        return None
    times = f"{rate / earlier:.1f} times as fast as before" if earlier > 0 else "after it had not grown before"
    return f"KL went from {then:.2f} to {now:.2f} nats since step {before}, {times}"


def entropy_collapse(seen: Watcher) -> str | None:
    """Entropy below 0.3 of its value at step 0."""
    start, now = _ends(seen, "policy/entropy")
    if start is None or now is None or now >= ENTROPY_SHARE * start:
        return None
    return f"entropy fell from {start:.2f} to {now:.2f} nats per token"


def length_drift(seen: Watcher) -> str | None:
    """Mean length 3 standard errors and 10 % away from step 0."""
    (start, now), z = _ends(seen, "length/mean"), _z(seen, "length/mean", "length/std")
    if start is None or now is None or z is None or abs(z) < LENGTH_Z or abs(now - start) < LENGTH_SHARE * start:
        return None
    return f"mean length went from {start:.1f} to {now:.1f} tokens (z = {z:.1f})"


def repetition(seen: Watcher) -> str | None:
    """Repeated trigrams above 0.3, and 0.1 above step 0."""
    start, now = _ends(seen, "text/rep3")
    if start is None or now is None or now <= max(REP3, start + REP3_RISE):
        return None
    return f"the share of repeated trigrams went from {start:.2f} to {now:.2f}"


def gold_proxy_divergence(seen: Watcher) -> str | None:
    """Gold 3 standard errors below its best probe so far while the proxy is above what it was there."""
    measured = [row for row in seen.probes if _number(row, "reward/gold") is not None]
    if len(measured) < 2:
        return None
    best, now = max(measured[:-1], key=lambda row: row["reward/gold"]), measured[-1]
    then, proxy = _number(best, "reward/proxy"), _number(now, "reward/proxy")
    z = _z_between(best, now, "reward/gold", "reward/gold_std")
    if then is None or proxy is None or z is None or z > -GOLD_Z or proxy <= then:
        return None
    return (f"gold fell from {best['reward/gold']:.3f} at step {best['step']} to {now['reward/gold']:.3f} while the "
            f"proxy rose from {then:.3f} to {proxy:.3f}")  # fmt: skip


def zero_signal(seen: Watcher) -> str | None:
    """More than half of the groups of the last 5 steps had one reward throughout: they taught nothing."""
    shares = [share for row in seen.trained if (share := _number(row, "group/zero_signal")) is not None]
    if len(shares) < SILENT_ROWS or fmean(shares) <= SILENT_SHARE:
        return None
    return f"{100 * fmean(shares):.0f} % of the groups of the last {SILENT_ROWS} steps had no differing rewards"


RULES: Mapping[str, tuple[str, Callable[[Watcher], str | None]]] = {
    "kl_acceleration": ("probe", kl_acceleration),
    "entropy_collapse": ("probe", entropy_collapse),
    "length_drift": ("probe", length_drift),
    "repetition": ("probe", repetition),
    "gold_proxy_divergence": ("probe", gold_proxy_divergence),
    "zero_signal": ("train", zero_signal),
}


def _ends(seen: Watcher, key: str) -> tuple[float | None, float | None]:
    """The key at the first probe and at the one just made."""
    return _number(seen.probes[0], key), _number(seen.probes[-1], key)


def _z(seen: Watcher, mean: str, std: str) -> float | None:
    return _z_between(seen.probes[0], seen.probes[-1], mean, std)


def _z_between(before: Row, now: Row, mean: str, std: str) -> float | None:
    """(m1 - m0) / sqrt((s1^2 + s0^2) / n), as if the two probes had independent completions: they share prompts and
    random numbers, so the true error is smaller and the alarm rather late than false."""
    n = _number(now, "probe/completions")
    parts = [_number(row, key) for row in (before, now) for key in (mean, std)]
    if before is now or n is None or any(part is None for part in parts):
        return None
    m0, s0, m1, s1 = (part for part in parts if part is not None)
    error = math.sqrt((s0**2 + s1**2) / n)
    return (m1 - m0) / error if error else math.copysign(math.inf, m1 - m0) if m1 != m0 else None


def _first(row: Row, *keys: str) -> float | None:
    return next((value for key in keys if (value := _number(row, key)) is not None), None)


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
