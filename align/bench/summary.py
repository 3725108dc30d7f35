"""From what the processes measured to one row of numbers for each work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from align.bench.limit import Group, Load, Machine, Shape, limit_parts
from align.bench.settings import Work


@dataclass(frozen=True)
class Round:
    """One round of one row: what each side's process measured, and the machine's rates just before."""

    work: str
    number: int
    ours: Mapping[str, Any]
    trl: Mapping[str, Any] | None
    machine: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One object of bench.json. None: does not apply."""

    work: str
    says: str
    ours_s: float  # median over all timed steps
    trl_s: float | None
    speedup: float | None  # trl_s / ours_s
    speedup_low: float | None  # the same of the medians of one round: the least, and the greatest
    speedup_high: float | None
    ours_peak_gb: float  # median over rounds
    trl_peak_gb: float | None
    peak_ratio: float | None  # ours_peak_gb / trl_peak_gb
    ours_tokens_per_s: float  # tokens generated and tokens trained on
    trl_tokens_per_s: float | None
    tokens: int  # of a step
    limit_s: float
    limit_ratio: float  # ours_s / limit_s
    limit_parts_s: dict[str, float]
    grpo_ratio: float | None  # ours_s / that of GRPO on the same completions
    ours_steps_s: list[list[float]]  # of each round
    trl_steps_s: list[list[float]] | None
    machine: dict[str, float]
    threads: int


def summarise(found: Sequence[Round], works: Sequence[Work]) -> list[Row]:
    """A row for each work, in the order of `works`."""
    machine = fastest([one.machine for one in found])
    ours = {work.name: _median([r.ours for r in found if r.work == work.name]) for work in works}
    return [_row(work, [r for r in found if r.work == work.name], machine, ours) for work in works]


def fastest(machines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best rate of all rounds: what the machine did when it was disturbed is not its limit."""
    return {key: max(machine[key] for machine in machines) for key in machines[0]}


def load_of(work: Work, groups: Sequence[tuple[int, Sequence[int]]]) -> Load:
    """What a step of this row works on. Rollouts have a KL to the reference, and DPO has a reference by definition."""
    return Load(
        groups=tuple(Group(prompt, tuple(lengths)) for prompt, lengths in groups),
        sampled=work.kind == "rollout",
        reference=work.kind in ("rollout", "pairs"),
        head=work.kind != "reward",
    )


def _row(work: Work, rounds: Sequence[Round], rates: dict[str, float], all_ours: Mapping[str, float]) -> Row:
    ours, trl = [r.ours for r in rounds], [r.trl for r in rounds if r.trl is not None]
    ours_s, trl_s = all_ours[work.name], _median(trl) if trl else None
    speedups = [_median([theirs]) / _median([mine]) for mine, theirs in zip(ours, trl, strict=False)]
    ours_peak, trl_peak = _peak(ours), _peak(trl) if trl else None
    load, shape = load_of(work, ours[0]["groups"]), Shape(**ours[0]["shape"])
    parts = limit_parts(load, shape, Machine(rates["flops"], rates["bytes"]))
    return Row(
        work=work.name,
        says=work.says,
        ours_s=ours_s,
        trl_s=trl_s,
        speedup=trl_s / ours_s if trl_s else None,
        speedup_low=min(speedups, default=None),
        speedup_high=max(speedups, default=None),
        ours_peak_gb=ours_peak,
        trl_peak_gb=trl_peak,
        peak_ratio=ours_peak / trl_peak if trl_peak else None,
        ours_tokens_per_s=load.worked_tokens / ours_s,
        trl_tokens_per_s=load.worked_tokens / trl_s if trl_s else None,
        tokens=load.worked_tokens,
        limit_s=sum(parts.values()),
        limit_ratio=ours_s / sum(parts.values()),
        limit_parts_s=parts,
        grpo_ratio=ours_s / all_ours[work.beside] if work.beside in all_ours else None,
        ours_steps_s=[list(m["seconds"]) for m in ours],
        trl_steps_s=[list(m["seconds"]) for m in trl] if trl else None,
        machine=rates,
        threads=ours[0]["threads"],
    )


def _median(measured: Sequence[Mapping[str, Any]]) -> float:
    return median(seconds for one in measured for seconds in one["seconds"])


def _peak(measured: Sequence[Mapping[str, Any]]) -> float:
    return median(one["peak_gb"] for one in measured)
