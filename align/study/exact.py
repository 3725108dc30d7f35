"""Exact studies: closed forms beside what the product's own functions compute, in seconds and without a run."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.exact import Figure
from align.refusals import ConfigError
from align.report.csvs import as_csv
from align.study import measured, rules
from align.study.record import as_json
from align.study.rules import Verdict
from align.study.spec import Study


@dataclass(frozen=True)
class Computed:
    """What an exact study gave: the bytes of verdict.json, tables for the page and as CSV, what is drawn of them."""

    verdict: Verdict
    text: str
    checks: Sequence[Mapping[str, Any]]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    figure: Figure | None

    def csvs(self) -> dict[str, str]:
        return {f"{name}.csv": as_csv(rows) for name, rows in {"checks": self.checks, **self.tables}.items()}


def source(study: Study) -> str:
    """Hash of the study, its module, this package and conf: what it is about may lie anywhere in them. Equal hash,
    equal verdict.json."""
    assert study.module is not None
    try:
        found = importlib.util.find_spec(study.module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        raise ConfigError(f"module={study.module}: there is no such module")
    return measured.digest(repr(study), [Path(found.origin)])


def compute(study: Study) -> Computed:
    """Imports the study's module, and with it torch. Raises ConfigError when it has no compute()."""
    module = importlib.import_module(str(study.module))
    if not hasattr(module, "compute"):
        raise ConfigError(f"module={study.module}: it has no function compute()")
    return judged(study, module.compute())


def judged(study: Study, result: Any) -> Computed:
    """What `compute()` of a study's module returned, by the rule; its numbers may be numpy's."""
    verdict = rules.exact(result.checks)
    checks = [
        {"name": one.name, "expected": one.expected, "found": one.found, "tolerance": one.tolerance,
         "holds": bool(math.isfinite(one.found) and abs(one.found - one.expected) <= one.tolerance),
         "source": one.source}
        for one in result.checks
    ]  # fmt: skip
    text = as_json(study, verdict, {"source": source(study), "checks": checks})
    return Computed(verdict, text, checks, result.tables, result.figure)
