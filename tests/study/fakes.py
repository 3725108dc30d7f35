"""A study in a file and its finished runs, made up: nothing is trained, nothing of Hydra is composed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from align.report.arms import load
from align.runs import Run
from align.study import spec
from align.study.judged import Arms
from align.study.spec import Study
from align.study.verdict import assemble
from tests.runs.fake_runs import config

PROMPTS, SAMPLES = 12, 2
TRAINED: dict[str, Any] = {
    "name": "made_up",
    "question": {"en": "Is it longer?", "zh": "会变长吗?"},
    "claim": "it is longer",
    "literature": "none",
    "not_shown": "anything real",
    "kind": "trained",
    "base": ["algo=dpo"],
    "tiers": {"cpu": ["steps=4"]},
    "arms": {"plain": [], "treated": ["algo.beta=1"]},
    "controls": {"placebo": ["algo.beta=2"]},
    "mitigations": {"cured": ["algo.beta=3"], "costly": ["algo.beta=4"]},
    "cure": {"arm": "treated", "removes": 0.5, "cost": {"metric": "reward/gold", "margin": 0.5}},
    "seeds": [0, 1, 2, 3, 4],
    "primary": {"metric": "length/mean", "rule": "effect", "high": "treated", "low": "plain", "direction": 1,
                "margin": 0.1, "of": "base_mean"},
    "gates": {"kl/exact": [0.5, 10]},
}  # fmt: skip
# At the end: tokens, gold, KL. All start at 40 tokens, gold 0.
ENDS = {
    "plain": (40.0, 1.0, 2.0),
    "treated": (60.0, 1.0, 2.0),
    "placebo": (40.2, 0.0, 2.0),
    "cured": (42.0, 1.1, 2.0),
    "costly": (41.0, -1.0, 2.0),
}


# How a seed moves an arm's end, times -0.25, 0, 0.25, -0.25, 0 tokens: -0.05 times that in the mean of five seeds.
MOVES = {"plain": 0.0, "treated": 1.0, "placebo": 1.0, "cured": -1.0, "costly": -1.0}


def declared(**changes: Any) -> dict[str, Any]:
    return TRAINED | changes


def write_study(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(declared(**changes), allow_unicode=True), encoding="utf-8")
    return path


def write_run(path: Path, seed: int, end: tuple[float, float, float], text: str = "words") -> Path:
    """Lengths lie 10 tokens around their mean within a prompt."""
    meta = {"name": "dpo", "config_hash": f"c-{path.name}", "start_fingerprint": "s", "data_fingerprint": "d"}
    run = Run.create(path, config("dpo", seed, steps=4), meta)
    for step, (tokens, gold, kl) in ((0, (40.0, 0.0, 0.0)), (4, end)):
        shift = 0.25 * (seed % 3 - 1) * MOVES.get(path.name.partition("-")[0], 1.0) if step else 0.0
        rows = [
            {"step": step, "prompt_id": f"p{x}", "sample": k, "prompt": text, "completion": text, "finished": True,
             "tokens": tokens + shift + x - 5.5 + (10 if k else -10), "gold": gold + shift / 10,
             "kl_exact": kl, "kl": kl}
            for x in range(PROMPTS) for k in range(SAMPLES)
        ]  # fmt: skip
        run.log("probe", step, {"length/mean": tokens + shift, "reward/gold": gold + shift / 10, "kl/exact": kl,
                                "kl/k1": kl, "length/truncated": 0.0})  # fmt: skip
        run.log_samples(rows)
    run.__exit__(None, None, None)
    (path / "report.html").write_text("made up")
    return path


def arms_of(root: Path, study: Study, ends: Mapping[str, tuple[float, float, float]] = ENDS) -> Arms:
    assert study.roles is not None and study.seeds is not None
    found = {
        name: load([write_run(root / f"{name}-{s}", s, ends[name]) for s in study.seeds["cpu"]]) for name in study.roles
    }
    return assemble(found)


def study_of(**changes: Any) -> Study:
    return spec.parse(declared(**changes))
