"""Studies of kind `measured`: a module of align.study makes the arms in this process, without a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from align.run import CONF
from align.study.engine import Plan, Task
from align.study.spec import STUDIES
from align.study.verdict import Arms

PACKAGE = Path(__file__).resolve().parents[1]


def source(chosen: Plan) -> str:
    """Hash of all that the arms follow from: study, tier, seeds, overrides, conf, and the code and answers shipped.

    Equal hash, equal verdict.json. Config hashes follow from these too, but composing every experiment takes longer
    than a study that is finished may. What a setting names by its path is not read: as with runs, other weights under
    the same name are not noticed.
    """
    asked = json.dumps([repr(chosen.study), chosen.tier, chosen.seeds, chosen.extra])
    code = [*PACKAGE.rglob("*.py"), *PACKAGE.with_name("reward_models").rglob("*.py"), *(PACKAGE / "assets").iterdir()]
    conf = [file for file in CONF.rglob("*.yaml") if not file.is_relative_to(STUDIES)]  # of them, the study is `asked`
    files = [file.read_bytes() for file in sorted([*code, *conf])]
    return hashlib.sha256(b"".join([asked.encode(), *files])).hexdigest()


def measure(chosen: Plan, tasks: Sequence[Task]) -> Arms:
    """Imports the study's module, and with it torch."""
    arms: Arms = import_module(f"align.study.{chosen.study.module}").measure(tasks)
    return arms
