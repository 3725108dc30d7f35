"""Each alarm fires on the run it is for, at the right step, and not on its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.alarms import RULES, Watcher, alarms


def probes(key: str, values, **others) -> list[dict]:
    """A probe every 10 steps; `others` are keys with one value each or a list."""
    rows = []
    for i, value in enumerate(values):
        row = {"phase": "probe", "step": 10 * i, key: value}
        rows.append(row | {k.replace("__", "/"): v[i] if isinstance(v, list) else v for k, v in others.items()})
    return rows


def train(key: str, values) -> list[dict]:
    return [{"phase": "train", "step": i, key: value} for i, value in enumerate(values, start=1)]


def fired(rows) -> list[tuple[int, str]]:
    return [(alarm.step, alarm.kind) for alarm in alarms(rows)]


FIRE = {
    "kl_acceleration": (probes("kl/exact", [0, 0.5, 1, 3]), 30),  # 0.05 a step, then 0.2
    "entropy_collapse": (probes("policy/entropy", [2.0, 1.0, 0.59]), 20),
    # 10 tokens with a standard error of sqrt(2 x 20^2 / 100) = 2.83: z = 3.5
    "length_drift": (probes("length/mean", [40, 41, 50], length__std=20.0, probe__completions=100), 20),
    "repetition": (probes("text/rep3", [0.05, 0.2, 0.31]), 20),
    # gold falls by 0.5 from its best at step 10; the standard error is sqrt(2 / 100) = 0.14
    "gold_proxy_divergence": (
        probes("reward/gold", [0, 1.0, 0.5], reward__gold_std=1.0, reward__proxy=[0, 1, 2], probe__completions=100),
        20,
    ),
    "zero_signal": (train("group/zero_signal", [0.1, 0.7, 0.7, 0.7, 0.7]), 5),  # mean 0.58
}
SILENT = {
    "kl_acceleration": [
        probes("kl/exact", [0, 0.5, 2, 4.5, 8]),  # quadratic growth: 2.5 times the mean rate before at its fastest
        probes("kl/exact", [0, 0.1, 0.2, 0.9]),  # fast, but less than a nat
        probes("kl/exact", [0, 0.1, 5]),  # too few probes to know what was usual
    ],
    "entropy_collapse": [probes("policy/entropy", [2.0, 1.0, 0.6])],
    "length_drift": [
        probes("length/mean", [40, 50], length__std=20.0, probe__completions=64),  # z = 2.8
        probes("length/mean", [400, 430], length__std=20.0, probe__completions=100),  # z = 10.6, but 7.5 %
        probes("length/mean", [40, 80]),  # no spread logged
        probes("length/mean", [40], length__std=20.0, probe__completions=100),
    ],
    "repetition": [probes("text/rep3", [0.3, 0.39]), probes("text/rep3", [0.0, 0.3])],
    "gold_proxy_divergence": [
        probes("reward/gold", [0, 1, 0.5], reward__gold_std=1.0, reward__proxy=[0, 1, 1], probe__completions=100),
        probes("reward/gold", [0, 1, 0.8], reward__gold_std=1.0, reward__proxy=[0, 1, 2], probe__completions=100),
        probes("reward/gold", [0, 0.5, 1], reward__gold_std=1.0, reward__proxy=[0, 1, 2], probe__completions=100),
    ],
    "zero_signal": [train("group/zero_signal", [1.0] * 4), train("group/zero_signal", [0.5] * 20)],
}


def test_every_rule_has_a_case_here_and_a_line_in_the_docs():
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    assert set(FIRE) == set(SILENT) == set(RULES)
    assert [kind for kind in RULES if f"`{kind}`" not in text] == []


@pytest.mark.parametrize("kind", RULES)
def test_it_fires_once_at_the_step_where_its_rule_first_holds(kind):
    rows, step = FIRE[kind]
    assert fired(rows) == [(step, kind)]
    assert fired([*rows, {**rows[-1], "step": 99}]) == [(step, kind)]


@pytest.mark.parametrize(("kind", "rows"), [(kind, rows) for kind, cases in SILENT.items() for rows in cases])
def test_it_is_silent_just_short_of_its_rule(kind, rows):
    assert kind not in {alarm.kind for alarm in alarms(rows)}


def test_length_may_drift_down_too():
    assert fired(probes("length/mean", [50, 40], length__std=20.0, probe__completions=100)) == [(10, "length_drift")]


def test_seeing_row_by_row_is_seeing_all_at_once():
    rows = [row for rows, _ in FIRE.values() for row in rows]
    watcher = Watcher()
    assert [alarm for row in rows for alarm in watcher.see(row)] == alarms(rows)


def test_null_numbers_and_foreign_rows_set_nothing_off():
    rows = [
        {"phase": "probe", "step": step, **dict.fromkeys(["kl/exact", "length/mean", "text/rep3"])} for step in (0, 1)
    ]
    assert alarms([*rows, {}, {"phase": "note", "step": 3}, {"phase": "probe"}]) == []


def test_a_sentence_carries_the_numbers():
    (alarm,) = alarms(FIRE["kl_acceleration"][0])
    assert alarm.what == "KL went from 1.00 to 3.00 nats since step 20, 4.0 times as fast as before"
