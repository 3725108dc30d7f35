"""Run directories as real experiments leave them, made up in milliseconds. Nothing is trained and torch is not needed.

The made-up world: KL grows like the square root of the step, proxy reward with it, gold less, and lengths drift by what
the algorithm is known for. Step 0 is the same in every run of one seed.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.runs import Run

PROMPTS = (
    "Explain in one sentence why the sky is blue.",
    "List three uses of a paper clip.",
    "Write a note of under 30 words that thanks a neighbour.",
    "Name a river and include the word bridge.",
    "Describe the sea without using the word water.",
    "Is a tomato a fruit? Answer yes or no, with a reason.",
    "Give exactly two tips for sleeping better.",
    "Summarise what photosynthesis does, in one sentence.",
)
WORDS = (
    "light",
    "of",
    "a",
    "small",
    "river",
    "bends",
    "under",
    "old",
    "bridges",
    "while",
    "people",
    "talk",
    "about",
    "rain",
)
# Per algorithm at full drift: KL in nats per sequence, proxy reward, gold reward, tokens.
DRIFT = {"grpo": (3.0, 0.9, 0.45, 6.0), "dpo": (2.0, 0.5, 0.30, 14.0), "sft": (0.8, 0.1, 0.12, -3.0)}
ALGO: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "on_policy", "group_size": 8, "kl": {"where": "loss", "estimator": "k3", "coef": 0.04}},
    "dpo": {"kind": "preference", "loss": "sigmoid", "beta": 0.1, "pairs_per_step": 16},
    "sft": {"kind": "sft", "examples_per_step": 16},
}
# Baselines: their steps are n = 2^step and temperatures.
TEMPERATURES = (1.0, 0.7, 0.5, 0.3)
BASELINES: dict[str, dict[str, Any]] = {
    "best_of_n": {"kind": "best_of_n"},
    "temperature": {"kind": "tempered", "temperatures": list(TEMPERATURES)},
}


def config(algo: str = "grpo", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A resolved config. `changes` are dotted keys with "__" for the dot: `algo__kl__coef=0.1`."""
    made: dict[str, Any] = {
        "algo": {
            "name": algo,
            **copy.deepcopy((ALGO | BASELINES)[algo]),
            "optimizer": {"lr": 1e-4, "schedule": "constant"},
        },
        "model": {"name": "smollm2-135m", "path": "embedded", "start": None, "lora": {"rank": 16, "alpha": 32}},
        "data": {"kind": "annotator", "name": "annotator", "labels": {"pairs": 1024, "sharpness": 1.5}},
        "reward": {"formula": "learned", "learned": {"run": None, "steps": 64}},
        "probe": {"every": 10, "prompts": len(PROMPTS), "samples": 2},
        "sampling": {"temperature": 1.0, "max_new_tokens": 128, "rows": 64},
        "seed": seed,
        "steps": 20,
        "run_dir": None,
        "runs_root": "runs",
        "device": "auto",
        "dtype": "auto",
        "tracker": "none",
    }
    for dotted, value in changes.items():
        *parents, leaf = dotted.split("__")
        place = made
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    return made


def write_run(
    path: Path,
    settings: Mapping[str, Any],
    *,
    state: str = "finished",
    steps: Sequence[int] = (0, 10, 20),
    meta: Mapping[str, Any] | None = None,
    values: Mapping[str, float] | None = None,
    texts: tuple[str, str] | None = None,
    events: Sequence[tuple[str, int, str]] = (),
) -> Path:
    """One run directory with probe rows and samples at `steps`.

    `meta` is put on top of meta.json, `values` on top of every probe row; `texts` replaces every prompt and completion;
    `events` are (kind, step, sentence).
    """
    algo, seed = settings["algo"]["name"], settings["seed"]
    about = {"align": "0.1.0", "name": f"{algo} smollm2-135m annotator", "commit": "0123456789abcdef"}
    about |= {"device": "cpu", "dtype": "bfloat16", "config_hash": "c0ffee"}
    about |= {"data_fingerprint": "d474d474", "start_fingerprint": "57a4757a47"}
    run = Run.create(path, settings, about | dict(meta or {}))
    for step in steps:
        samples = _samples(algo, seed, step, texts)
        run.log("probe", step, _probe(algo, seed, step, samples) | dict(values or {}))
        run.log_samples(samples)
        run.log("train", step, {"loss": 0.7 / (1 + step), "optim/lr": 1e-4, "time/update": 1.5})
        samples_something = settings["algo"]["kind"] == "on_policy"
        run._started -= 30 + 10 * len(algo)  # an hour's work in no time
        run.count(prompts=40, completions=320, gen_tokens=12_800 if samples_something else 0)
    for event in events:
        run.event(*event)
    run.__exit__(*{"failed": (RuntimeError, RuntimeError("out of memory"), None)}.get(state, (None, None, None)))
    if state in ("running", "interrupted"):
        run.status(state)
    return path


def write_sweep(root: Path, algos: Sequence[str] = tuple(ALGO), seeds: Sequence[int] = (0, 1, 2)) -> list[Path]:
    """Every algorithm with every seed, from one start."""
    return [write_run(root / f"{algo}-{seed}", config(algo, seed)) for algo in algos for seed in seeds]


def write_baselines(root: Path, seeds: Sequence[int] = (0, 1, 2)) -> list[Path]:
    """Best-of-n up to 8 and four temperatures, with every seed."""
    steps = {"best_of_n": range(4), "temperature": range(len(TEMPERATURES))}
    return [
        write_run(root / f"{algo}-{seed}", config(algo, seed, steps=3), steps=tuple(steps[algo]))
        for algo in BASELINES for seed in seeds
    ]  # fmt: skip


def _drift(algo: str, seed: int, step: int) -> tuple[random.Random, tuple[float, ...]]:
    """Randomness that is the same for every algorithm at step 0, and how far each quantity has moved."""
    rng = random.Random(f"start {seed}" if step == 0 else f"{algo} {seed} {step}")
    scale = math.sqrt(step / 20) * (1 + (rng.gauss(0, 0.12) if step else 0))
    if algo in BASELINES:
        scale = math.sqrt(step / 10)
    return rng, tuple(part * scale for part in DRIFT.get(algo, DRIFT["grpo"]))


def _samples(algo: str, seed: int, step: int, texts: tuple[str, str] | None) -> list[dict[str, Any]]:
    rng, (kl, proxy, gold, tokens) = _drift(algo, seed, step)
    rows = []
    for number, prompt in enumerate(PROMPTS):
        for sample in range(2):
            length = max(4, round(34 + 2 * number + tokens + rng.gauss(0, 6)))
            said = " ".join(rng.choice(WORDS) for _ in range(round(length * 0.8))).capitalize() + "."
            rewards = {"reward": 0.2 + proxy + rng.gauss(0, 0.15), "gold": 0.1 + gold + rng.gauss(0, 0.15)}
            row = {"step": step, "prompt_id": f"p{number}", "sample": sample, "prompt": texts[0] if texts else prompt}
            row |= {"completion": texts[1] if texts else said, "tokens": length, "finished": rng.random() > 0.1}
            row |= {"kl": max(0.0, kl + rng.gauss(0, 0.2)) if step else 0.0, **rewards, "components": {}}
            row |= {"kl_exact": max(0.0, kl + rng.gauss(0, 0.05)) if step else 0.0, "entropy": 2.3 - 0.1 * kl}
            row |= {"rep3": abs(rng.gauss(0, 0.02)) + 0.02 * kl, "correct": None}
            rows.append(row | {"win": float(rng.random() < 0.5 + 0.3 * gold) if step else 0.5})
    return rows


def _probe(algo: str, seed: int, step: int, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    def mean(field: str) -> float:
        return sum(row[field] for row in samples) / len(samples)

    _, (kl, _, gold, _) = _drift(algo, seed, step)
    found = {
        "kl/k1": mean("kl"),
        "kl/exact": mean("kl_exact"),
        "reward/proxy": mean("reward"),
        "reward/gold": mean("gold"),
        "reward/gap": mean("reward") - mean("gold"),
        "length/mean": mean("tokens"),
        "length/restricted_mean": mean("tokens"),
        "length/truncated": 1 - mean("finished"),
        "policy/entropy": 2.3 - 0.1 * kl,
        "text/rep3": mean("rep3"),
        "text/distinct2": 0.8 - 0.03 * kl,
        "text/self_bleu": 0.2 + 0.05 * kl,
        "win/gold": mean("win"),
        "win/gold_lc": 0.5 + 0.2 * gold,
        "pref/chosen_logprob": -0.4 * kl,
        "pref/rejected_logprob": -1.5 * kl,
        "time/probe": 1.0 + DRIFT.get(algo, (0.0,))[0],
    }
    if algo == "temperature":
        found["sampling/temperature"] = TEMPERATURES[step]
    if algo == "best_of_n":
        n = 2**step
        found = {key: value for key, value in found.items() if step == 0 or not key.startswith("kl/")}
        found["kl/bound"] = math.log(n) - (n - 1) / n
    return found
