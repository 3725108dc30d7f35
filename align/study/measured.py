"""Studies of kind `measured`: a module of align.study makes the arms in this process, without a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from align.run import CONF
from align.study.engine import Plan, Task
from align.study.judged import Arms
from align.study.spec import STUDIES

PACKAGE = Path(__file__).resolve().parents[1]


def source(chosen: Plan) -> str:
    """Hash of all that the arms follow from: study, tier, seeds, overrides, conf, and the code and answers shipped.

    Equal hash, equal verdict.json. Config hashes follow from these too, but composing every experiment takes longer
    than a study that is finished may. What a setting names by its path is not read: as with runs, other weights under
    the same name are not noticed.
    """
    asked = json.dumps([repr(chosen.study), chosen.tier, chosen.seeds, chosen.extra])
    return digest(asked, [*PACKAGE.with_name("reward_models").rglob("*.py"), *(PACKAGE / "assets").iterdir()])


def digest(asked: str, more: Iterable[Path] = ()) -> str:
    """Hash of what was asked, this package with its pages' templates, conf, these files, and torch's version."""
    code = [file for kind in ("*.py", "*.j2", "*.css") for file in PACKAGE.rglob(kind)]
    conf = [file for file in CONF.rglob("*.yaml") if not file.is_relative_to(STUDIES)]  # of them, the study is `asked`
    files = [file.read_bytes() for file in sorted({*code, *conf, *more})]
    return hashlib.sha256(b"".join([asked.encode(), version("torch").encode(), *files])).hexdigest()


def measure(chosen: Plan, tasks: Sequence[Task]) -> Arms:
    """Imports the study's module, and with it torch."""
    arms: Arms = import_module(f"align.study.{chosen.study.module}").measure(tasks)
    return arms
