"""Exact studies: computed once, written with their checks and tables, refused what only runs have."""

from __future__ import annotations

import json
import re

import yaml

from align.study import __main__ as cli
from align.study.spec import PROSE
from tests.study import closed_form
from tests.study.fakes import TRAINED


def write(tmp_path, **changes):
    made = {key: TRAINED[key] for key in PROSE} | {"kind": "exact", "module": "tests.study.closed_form"} | changes
    (tmp_path / "exact.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    return [f"study={tmp_path}/exact.yaml", f"out={tmp_path}/out"]


def test_an_exact_study_is_computed_once_and_again_when_it_is_declared_otherwise(tmp_path, capsys):
    arguments, before = write(tmp_path), len(closed_form.CALLS)
    assert cli.main(arguments) == 0 and "CONFIRMED" in capsys.readouterr().out
    out = tmp_path / "out/made_up"
    kept = json.loads((out / "verdict.json").read_text("utf-8"))
    assert kept["outcome"] == "CONFIRMED" and kept["checks"][0]["holds"] is True and kept["effect"] is None
    assert (out / "checks.csv").read_text().splitlines()[0] == "name,expected,found,tolerance,holds,source"
    assert (out / "powers.csv").read_text() == "n,of <b>\n2.0,4\n"
    page = (out / "index.html").read_text("utf-8")
    assert "all 1 checks hold" in page.lower() and "of &lt;b&gt;" in page and "of <b>" not in page
    assert (
        "Squares &lt;u&gt;" in page and "Powers &lt;i&gt;" in page and not {"<u>", "<i>"} & set(re.findall("<.>", page))
    )
    drawn = (out / "figure.svg").read_text("utf-8")
    assert drawn.count("<title>") == 1 and "square\nn 2\nof &lt;b&gt; 4</title>" in drawn
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG") and 'href="figure.svg"' in page
    assert cli.main(arguments) == 0 and "CONFIRMED" in capsys.readouterr().out
    assert len(closed_form.CALLS) == before + 1
    assert cli.main(write(tmp_path, claim="another")) == 0 and len(closed_form.CALLS) == before + 2


def test_a_module_that_is_not_there_and_arguments_of_runs_are_refused(tmp_path, capsys):
    assert cli.main(write(tmp_path, module="align.nothing")) == 1
    assert "module=align.nothing: there is no such module" in capsys.readouterr().err
    assert cli.main([*write(tmp_path), "seeds=1"]) == 1
    assert "is exact: it has no runs to change" in capsys.readouterr().err
