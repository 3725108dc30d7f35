"""Study files, arguments of align.study, and verdicts that are read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from align.refusals import ConfigError
from align.rows import RunError
from align.study import __main__ as study
from align.study import engine, exact, spec
from tests.fuzz import bad
from tests.fuzz.test_config import VALUES, command, override
from tests.fuzz.trial import attempt, fuzzed, nothing_half_written

FILES = {file.stem: file.read_bytes() for file in spec.files()}
RAW = {name: yaml.safe_load(text) for name, text in FILES.items()}


@fuzzed(200)
def test_study_files(tmp_path_factory, rng):
    name = rng.choice(list(FILES))
    path = tmp_path_factory.getbasetemp() / "one.yaml"
    if rng.random() < 0.3:
        path.write_bytes(bad.damaged(rng, FILES[name]))
    else:
        changed = bad.changed(rng, RAW[name], rng.randrange(1, 3))
        path.write_text(yaml.safe_dump(changed, allow_unicode=False))
    found = attempt("study files", lambda: spec.load(path), ConfigError)
    if found is not None:
        assert found == spec.load(path)


@fuzzed(10)
def test_studies_that_load_are_planned_or_refused(tmp_path_factory, rng):
    """Down to the experiments that they would run."""
    raw = bad.changed(rng, RAW[rng.choice([name for name in RAW if RAW[name]["kind"] == "trained"])], 1)
    path = tmp_path_factory.getbasetemp() / "trained.yaml"
    path.write_bytes(bad.as_json(raw))  # YAML holds JSON
    declared = attempt("studies", lambda: spec.load(path), ConfigError)
    if declared is None or declared.tiers is None:
        return
    chosen = lambda: engine.plan(declared, next(iter(declared.tiers)), None, ["data.path=x"], Path("runs"))  # noqa: E731
    attempt("plans of studies", lambda: engine.expand(chosen()), ConfigError)


@fuzzed(40)
def test_command_lines_of_align_study(tmp_path_factory, monkeypatch, rng):
    """Up to where the first run would begin."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(engine, "carry_out", lambda tasks, jobs, folder: [engine.Failed(tasks[0], 1, "not run")])
    monkeypatch.setattr(study, "_measured", lambda chosen, out: engine.expand(chosen))
    monkeypatch.setattr(study, "_exact", lambda *_: None)
    given = [f"study={rng.choice((*FILES, *VALUES))}"] if rng.random() < 0.9 else []
    for _ in range(rng.randrange(3)):
        key = rng.choice(("tier", "seeds", "out", "runs_root", "jobs", "study", "steps", "model"))
        given.append(
            f"{key}={rng.choice(('cpu', 'gpu', '0,1', '1', *VALUES))}" if rng.random() < 0.7 else override(rng)
        )
    given = [argument.replace("\0", "").encode("utf-8", "replace").decode() for argument in given]
    if any(argument in ("-h", "--help") for argument in given):
        return
    attempt("align.study", lambda: command(lambda: study.main(given)), (ConfigError, RunError))


@pytest.fixture(scope="module")
def exactly(tmp_path_factory):
    """An exact study that has been carried out."""
    out = tmp_path_factory.mktemp("studies")
    assert study.main(["study=kl_estimators", f"out={out}"]) == 0
    return out / "kl_estimators", spec.load(spec.find("kl_estimators"))


@fuzzed(10)
def test_a_damaged_verdict_is_computed_again(exactly, monkeypatch, rng):
    """Or said as it stands, where what it was computed from is still named in it."""
    out, declared = exactly
    whole = {name: (out / name).read_bytes() for name in ("verdict.json", "index.html")}
    computed = exact.compute(declared)
    monkeypatch.setattr(exact, "compute", lambda _: computed)
    file = out / rng.choice(("verdict.json",) * 9 + ("index.html",))
    bad.spoil_json(rng, file) if file.suffix == ".json" else bad.spoil(rng, file)
    arguments = ["study=kl_estimators", f"out={out.parent}"]
    attempt("verdicts", lambda: command(lambda: study.main(arguments)), (ConfigError, RunError))
    nothing_half_written(out)
    for name, text in whole.items():
        bad.removed(out / name)
        (out / name).write_bytes(text)
