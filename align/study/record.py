"""verdict.json and the tables beside it. No time, no path: equal runs give equal bytes, a second start changes none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import align
from align.report.arms import Arm
from align.report.csvs import as_csv
from align.report.stats import at_step
from align.study.engine import Plan
from align.study.judged import Judged
from align.study.rules import OUTCOMES, Verdict
from align.study.spec import Study
from align.study.verdict import Found

# What is told of every arm at its end, beside the study's own metrics.
TOLD = ("length/mean", "length/truncated", "reward/gold", "reward/proxy", "kl/exact", "kl/bound", "text/rep3",
        "text/distinct2", "policy/entropy", "pref/accuracy", "accuracy/sampled", "rm/gold_accuracy",
        "rm/policy_accuracy", "rm/policy_drop", "rm/labels", "bon/a", "bon/b", "bench/chat_hard", "bench/refusal",
        "bench/arithmetic", "bench/ties")  # fmt: skip
DIGITS = 10  # the last ones depend on the order in which a machine adds


def of_arms(chosen: Plan, found: Found, source: str) -> str:
    """`source`: hash of what was asked and of the code (align/study/measured.py): other code writes another page."""
    about = {"as_declared": chosen.as_declared, "tier": chosen.tier, "overrides": chosen.changes}
    about |= {"seeds_run": list(chosen.seeds), "screen": found.screen, "source": source}
    return as_json(chosen.study, found.verdict, about | _details(found))


def as_json(study: Study, verdict: Verdict, details: Mapping[str, Any]) -> str:
    """The bytes of verdict.json: the verdict first, then what was declared, then what it rests on."""
    about: dict[str, Any] = {"study": study.name, "kind": study.kind, **asdict(verdict), "declared": study.declared}
    about |= {"question": dict(study.question), "claim": study.claim, "literature": study.literature}
    about |= {**details, "not_shown": study.not_shown, "align": align.__version__}
    return json.dumps(_rounded(about), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def standing(out: Path, study: Study, source: str) -> tuple[Verdict, bool] | None:
    """The verdict of verdict.json, the last that is written, and whether it is a screen's: where it is whole, of this
    study as declared and of this source, with its page. None: it has to be computed."""
    try:
        kept = json.loads((out / "verdict.json").read_text("utf-8"))
        same = (kept["declared"], kept["source"]) == (study.declared, source)
        found = {key: kept[key] for key in Verdict.__dataclass_fields__}
        whole = all(isinstance(found[key], kind) for key, kind in get_type_hints(Verdict).items())
        if not (same and whole and found["outcome"] in OUTCOMES and (out / "index.html").is_file()):
            return None
        return Verdict(**found), kept.get("screen", False) is True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def decided(out: Path, chosen: Plan) -> str | None:
    """The tier whose verdict, as declared, a trial or another tier would overwrite."""
    try:
        kept = json.loads((out / "verdict.json").read_text("utf-8"))
        stands = kept["as_declared"] is True and kept["declared"] == chosen.study.declared
        return str(kept["tier"]) if stands and (kept["tier"] != chosen.tier or not chosen.as_declared) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _details(found: Found) -> dict[str, Any]:
    own = [one.metric.key for one in (found.primary, *found.secondary)]
    return {
        "primary": _contrast(found.primary),
        "gates": [asdict(gate) | {"passed": gate.passed} for gate in found.gates],
        "secondary": [_contrast(one) for one in found.secondary],
        "controls": [_contrast(one) for one in found.controls],
        "mitigations": [
            {"arm": one.arm, "works": one.works, "removed": one.removed, "removal": _contrast(one.removal),
             "cost": _contrast(one.cost)} for one in found.cured
        ],
        "arms": {name: _arm_facts(arm, own) for name, arm in found.arms.items()},
    }  # fmt: skip


def _contrast(one: Judged) -> dict[str, Any]:
    # not `high` and `low`, which are the interval's ends
    named = {"name": one.title, "metric": one.metric.key, "arm": one.high, "against": one.low}
    return named | asdict(one.verdict) | {"by_seed": dict(one.by_seed)}


def _arm_facts(arm: Arm, own: Sequence[str]) -> dict[str, Any]:
    keys = [key for key in dict.fromkeys([*own, *TOLD]) if arm.logs(key)]
    both = {key: (at_step(arm, 0, key), at_step(arm, arm.end, key)) for key in keys}
    ends = {key: {"start": start and start.mean, "end": end and end.mean} for key, (start, end) in both.items()}
    runs = {
        str(run.seed): {key: run.record.meta.get(key) for key in ("config_hash", "start_fingerprint",
                                                                  "data_fingerprint")}
        for run in arm.seeds
    }  # fmt: skip
    return {"step": arm.end, "metrics": ends, "runs": runs}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def contrasts_csv(found: Found) -> str:
    """Every contrast at full precision, one row each."""
    kinds = [("primary", [found.primary]), ("secondary", found.secondary), ("control", found.controls)]
    kinds += [("removal", [one.removal for one in found.cured]), ("cost", [one.cost for one in found.cured])]
    rows = [{"kind": kind, **_contrast(one)} for kind, judged in kinds for one in judged]
    return as_csv([{key: value for key, value in row.items() if key != "by_seed"} for row in rows])
