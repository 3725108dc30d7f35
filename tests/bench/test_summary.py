"""Medians and ratios of the bench, and what bench.json holds."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import pytest
from rich.console import Console

from align.bench.settings import settings
from align.bench.stamps import Stamps
from align.bench.summary import Round, fastest, summarise
from align.bench.table import note, table

SHAPE = dict(layers=1, hidden=2, intermediate=3, heads=1, kv_heads=1, head_dim=2, vocab=5, rank=1, weight_bytes=2)
WORKS = settings(["works=grpo_4x4,ppo_4x4"]).works
REQUIRED = {"work", "ours_s", "trl_s", "speedup", "peak_ratio", "limit_ratio", "grpo_ratio"}


def measured(seconds: list[float], peak: float) -> dict:
    return {"seconds": seconds, "peak_gb": peak, "groups": [[4, [3, 2]]], "shape": SHAPE, "threads": 2}


def found() -> list[Round]:
    slow, fast = {"flops": 50.0, "bytes": 4.0}, {"flops": 100.0, "bytes": 2.0}
    return [
        Round("grpo_4x4", 0, measured([1.0, 2.0], 1.0), measured([6.0, 6.0], 4.0), slow),
        Round("ppo_4x4", 0, measured([3.0, 3.0], 1.0), None, slow),
        Round("grpo_4x4", 1, measured([2.0, 5.0], 3.0), measured([10.0, 11.0], 4.0), fast),
        Round("ppo_4x4", 1, measured([2.0, 9.0], 1.0), None, fast),
    ]


def test_medians_are_over_all_steps_of_all_rounds():
    grpo, ppo = summarise(found(), WORKS)
    assert grpo.ours_s == 2.0  # of 1, 2, 2, 5
    assert grpo.trl_s == 8.0  # of 6, 6, 10, 11
    assert grpo.speedup == 4.0
    assert ppo.ours_s == 3.0  # of 2, 3, 3, 9


def test_the_spread_is_that_of_the_rounds_own_ratios():
    grpo, _ = summarise(found(), WORKS)
    assert grpo.speedup_low == 10.5 / 3.5  # the second round
    assert grpo.speedup_high == 6.0 / 1.5  # the first


def test_what_does_not_apply_is_none():
    grpo, ppo = summarise(found(), WORKS)
    assert (ppo.trl_s, ppo.speedup, ppo.peak_ratio, ppo.trl_steps_s) == (None, None, None, None)
    assert ppo.grpo_ratio == 1.5 and grpo.grpo_ratio is None
    (alone,) = summarise([r for r in found() if r.work == "ppo_4x4"], WORKS[1:])
    assert alone.grpo_ratio is None


def test_peaks_and_tokens():
    grpo, _ = summarise(found(), WORKS)
    assert grpo.peak_ratio == 0.5  # the median of 1 and 3, over 4
    assert grpo.tokens == 10 and grpo.ours_tokens_per_s == 5.0


def test_the_limit_takes_the_best_rates_of_all_rounds():
    grpo, _ = summarise(found(), WORKS)
    assert grpo.machine == {"flops": 100.0, "bytes": 4.0}
    assert grpo.limit_ratio == pytest.approx(grpo.ours_s / sum(grpo.limit_parts_s.values()))
    assert fastest([{"a": 1.0}, {"a": 3.0}, {"a": 2.0}]) == {"a": 3.0}


def test_bench_json_has_what_is_promised():
    rows = json.loads(json.dumps([asdict(row) for row in summarise(found(), WORKS)]))
    assert all(row.keys() >= REQUIRED for row in rows)
    assert [row["work"] for row in rows] == ["grpo_4x4", "ppo_4x4"]
    assert rows[1]["speedup"] is None


def test_the_table_fits_a_hundred_columns():
    rows = summarise(found(), WORKS)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(rows))
    shown = console.export_text()
    assert "4.0x (3.0 to 4.0)" in shown and "1.50x" in shown
    assert len(shown.splitlines()) == 1 + len(rows)  # nothing is wrapped
    assert all(len(line) <= 100 for line in note(rows).splitlines())


def test_a_step_lasts_from_the_end_of_the_one_before_and_pays_its_share_of_what_came_first():
    stamps = Stamps()
    stamps.times, stamps.outside = [10.0, 13.0, 14.0, 16.0], 3.0
    assert stamps.seconds(warmup=1) == [2.0, 3.0]
