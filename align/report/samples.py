"""Completions side by side: the same prompt, what every arm made of it, and what the start model had made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from align.report.arms import Arm, SeedRun
from align.report.metrics import GOLD, KL_K1, LENGTH, PROXY, SAMPLED, TRUNCATED, WIN, sample_value
from align.report.text import config_value, number

# What keeps a page of many arms quick to load; what does not fit is counted in the page and stays in samples.jsonl.
PAGE_CHARACTERS = 1_500_000
COMPLETION_CHARACTERS = 4_000
SORTS = {"gold": GOLD, "reward": PROXY, "length": LENGTH, "kl": KL_K1}
FACTS = {"reward": PROXY, "gold": GOLD, "KL": KL_K1}
CORRECT, WINS = ("wrong", "correct"), ("gold below the start's", "gold above the start's")


@dataclass(frozen=True)
class Shown:
    """One completion as the page shows it."""

    step: int
    when: str  # "step 20", of a baseline "n=8" or "T=0.7"
    text: str
    facts: str  # "reward 0.512, gold 0.733, 42 tokens, truncated"
    cut: int  # characters left out at the end


@dataclass(frozen=True)
class Column:
    """One arm's answer at its last probed step, and at step 0 unless the row shows that once for all arms."""

    arm: Arm
    seed: str
    end: Shown | None
    start: Shown | None


@dataclass(frozen=True)
class Row:
    """One sample of one prompt."""

    sample: int
    shared_start: Shown | None  # the step 0 completion, where all arms have the same
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Entry:
    prompt_id: str
    prompt: str
    rows: tuple[Row, ...]
    sorts: Mapping[str, float]  # what prompts can be sorted by -> this prompt's value
    truncated: bool  # some arm's answer at the end is cut off


@dataclass(frozen=True)
class Browser:
    entries: tuple[Entry, ...]
    arms: tuple[Arm, ...]  # that have completions
    shown: int  # samples of prompts, over all entries
    total: int


def browser(arms: Sequence[Arm]) -> Browser:
    """First samples of all prompts before second ones, until the page is full. An arm's first seed speaks for it."""
    speakers = [(arm, run) for arm in arms if (run := _speaker(arm))]
    prompts: dict[str, str] = {}
    keys: dict[tuple[str, int], None] = {}
    for _, run in speakers:
        for rows in run.samples.values():
            for (prompt_id, sample), row in rows.items():
                prompts.setdefault(prompt_id, str(row.get("prompt") or ""))
                keys[prompt_id, sample] = None
    entries: dict[str, list[Row]] = {}
    shown, room = 0, PAGE_CHARACTERS
    for prompt_id, sample in sorted(keys, key=lambda key: key[1]):
        answers = _row(speakers, prompt_id, sample)
        room -= len(prompts[prompt_id]) + _characters(answers)
        if room < 0 and shown:
            break
        entries.setdefault(prompt_id, []).append(answers)
        shown += 1
    made = tuple(_entry(speakers, key, prompts[key], rows) for key, rows in entries.items())
    return Browser(made, tuple(arm for arm, _ in speakers), shown, len(keys))


def _entry(speakers: Sequence[tuple[Arm, SeedRun]], prompt_id: str, prompt: str, rows: Sequence[Row]) -> Entry:
    """Prompts can be sorted by how far the arms' answers lie apart at the end; of one arm, by how far it has moved."""
    sorts = {}
    for name, metric in SORTS.items():
        field = metric.sample_field
        ends = [_mean(run, max(run.samples), prompt_id, field) for _, run in speakers]
        known = [value for value in ends if value is not None]
        if name == "kl":
            spread = known
        elif len(speakers) == 1:
            start = _mean(speakers[0][1], 0, prompt_id, field)
            spread = [abs(known[0] - start)] if known and start is not None else []
        else:
            spread = [max(known) - min(known)] if len(known) > 1 else []
        if spread:
            sorts[name] = max(spread)
    ends = [_mean(run, max(run.samples), prompt_id, TRUNCATED.sample_field) for _, run in speakers]
    return Entry(prompt_id, prompt, tuple(rows), sorts, any(ends))


def _mean(run: SeedRun, step: int, prompt_id: str, field: str) -> float | None:
    rows = run.samples.get(step, {})
    values = [value for (prompt, _), row in rows.items() if prompt == prompt_id
              and (value := sample_value(row, field)) is not None]  # fmt: skip
    return fmean(values) if values else None


def _speaker(arm: Arm) -> SeedRun | None:
    return next((run for run in (*arm.at_end, *arm.seeds) if run.samples), None)


def _row(speakers: Sequence[tuple[Arm, SeedRun]], prompt_id: str, sample: int) -> Row:
    starts = [_shown(arm, run, 0, prompt_id, sample) for arm, run in speakers]
    ends = [
        _shown(arm, run, max(run.samples), prompt_id, sample) if max(run.samples) else None for arm, run in speakers
    ]
    same = _alike(starts)
    columns = (
        Column(arm, config_value(run.seed), end, None if same else start)
        for (arm, run), end, start in zip(speakers, ends, starts, strict=True)
    )
    return Row(sample, starts[0] if same else None, tuple(columns))


def _alike(starts: Sequence[Shown | None]) -> bool:
    """Whether all arms show the same at step 0, whatever a baseline calls that step."""
    known = [(start.text, start.facts, start.cut) if start else None for start in starts]
    return known[0] is not None and all(start == known[0] for start in known)


def _shown(arm: Arm, run: SeedRun, step: int, prompt_id: str, sample: int) -> Shown | None:
    row = run.samples.get(step, {}).get((prompt_id, sample))
    if row is None:
        return None
    text = str(row.get("completion") or "")
    when = f"step {step}" if arm.trained else arm.setting(step)
    cut = max(0, len(text) - COMPLETION_CHARACTERS)
    return Shown(step, when, text[:COMPLETION_CHARACTERS], _facts(row), cut)


def _facts(row: Mapping[str, Any]) -> str:
    parts = []
    for name, metric in FACTS.items():
        if (value := sample_value(row, metric.sample_field)) is not None:
            parts.append(f"{name} {number(value, metric.decimals)}")
    tokens = row.get(LENGTH.sample_field)
    parts += [f"{tokens} token{'s' * (tokens != 1)}"] if isinstance(tokens, int) else []
    parts += [CORRECT[bool(value)]] if (value := sample_value(row, SAMPLED.sample_field)) is not None else []
    if (value := sample_value(row, WIN.sample_field)) not in (None, 0.5):
        parts.append(WINS[value == 1])
    parts += ["truncated"] if row.get("finished") is False else []
    return ", ".join(parts)


def _characters(row: Row) -> int:
    shown = [row.shared_start, *(part for column in row.columns for part in (column.end, column.start))]
    return sum(len(part.text) + 200 for part in shown if part)  # 200: the markup around it
