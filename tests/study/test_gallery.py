"""docs/studies.md against conf/study: what it says is there is there, and what is there it says."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align.study import panels, spec
from tests.exact.test_exact import computed, row, table

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "studies.md").read_text("utf-8")
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<zh>.+?)<br>(?P<en>.+?) \| (?P<tier>.+?) \| (?P<status>.+?) \|$", re.M)
ROWS = {match["name"]: match.groupdict() for match in ROW.finditer(TEXT)}
DECLARED = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in spec.files()}
STORED = ROOT / "docs" / "studies"
ANSWERED = re.findall(r"^### `(\w+)`", TEXT, re.MULTILINE)
RECIPES = {file.stem: file for file in sorted((ROOT / "scripts" / "studies").glob("*.py"))}
EXACT = [name for name, study in DECLARED.items() if study["kind"] == "exact"]
STATUS = r"declared, not run|run: [A-Z]+( \((provisional|screen)\))?"  # of a study with arms


def status(name: str) -> str:
    """Of the row's first study; those of others of the row stand behind it."""
    return ROWS[name]["status"].partition("; ")[0]


def row_of(name: str) -> str:
    return name if name in ROWS else name.rpartition("_")[0]


def answer(name: str) -> str:
    """The paragraphs under the study's own heading."""
    return TEXT.split(f"### `{name}`\n")[1].split("\n#")[0]


def test_all_of_the_catalogue_is_there_once():
    names = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert len(names) == len(set(names)) == len(ROWS) == 42
    sections = TEXT.split("\n## ")[1:]
    assert [len(ROW.findall(section)) for section in sections] == [8, 8, 9, 10, 7]


@pytest.mark.parametrize("name", DECLARED)
def test_what_is_declared_is_listed_with_its_own_question(name):
    if name not in ROWS:
        assert name.rpartition("_")[0] in ROWS
        return
    row, question = ROWS[name], DECLARED[name]["question"]
    assert row["en"] == question["en"]
    assert row["zh"].replace(r"\|", "|") == question["zh"]
    assert status(name) != "not built"


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_to_exist_exists(name):
    row, study = ROWS[name], DECLARED.get(name)
    if study is None:
        assert status(name) == "not built" and f"study={name}" not in TEXT
    elif study["kind"] == "exact":
        assert re.fullmatch(r"exact, run: [A-Z]+", status(name)) and "T0" in row["tier"]
    else:
        assert re.fullmatch(STATUS, status(name))
        assert ("T2" in row["tier"]) <= ("gpu" in study["tiers"]) and "cpu" in study["tiers"]


@pytest.mark.parametrize("name", ROWS)
def test_another_study_of_a_row_is_told_behind_the_first(name):
    others = [other for other in DECLARED if other not in ROWS and other.rpartition("_")[0] == name]
    told = [part.partition(": ") for part in ROWS[name]["status"].split("; ")[1:]]
    assert [part[0] for part in told] == [f"`{other}`" for other in others]
    assert all(re.fullmatch(STATUS, part[2]) for part in told)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_study_has_an_answer_a_command_and_a_verdict(name):
    written = json.loads((STORED / name / "verdict.json").read_text("utf-8"))
    assert status(name) == f"exact, run: {written['outcome']}"
    text = answer(name)
    assert f"**{written['outcome']}**: {written['reason']} ([verdict.json](studies/{name}/verdict.json))" in text
    assert re.search(rf"^`python -m align.study study={name}` · .* · 2 CPU cores, \d+ s$", text, re.MULTILINE)
    assert f"[{name}.py](../scripts/studies/{name}.py)" in text


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_study_has_its_figure_as_it_is_declared_now(name):
    """Its words and its points; not the bytes, since the last digits of float32 are a machine's own."""
    assert re.search(rf"^!\[.{{50,}}\]\(studies/{name}/figure.svg\)$", answer(name), re.MULTILINE)
    found = computed(name)[0]
    svg = (STORED / name / "figure.svg").read_text("utf-8")
    words = {html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)}
    shown = [(panel, panels.series(panel, found.tables)) for panel in found.figure.panels]
    for panel, lines in shown:
        assert {panel.title, *filter(None, panel.labels), *panel.names.values()} <= words
        assert len(lines) == 1 or {one.label for one in lines} <= words
    points = sum(len(one.xs) for _, lines in shown for one in lines if not isinstance(one.xs[0], str))
    assert svg.count("<title>") == points and len(svg) < 60_000


@pytest.mark.parametrize("name", [name for name in ANSWERED if name not in EXACT])
def test_an_answer_by_runs_has_its_verdict_figure_command_and_time(name):
    written, text = json.loads((STORED / name / "verdict.json").read_text("utf-8")), answer(name)
    tag = " (screen)" if written["screen"] else " (provisional)" if written["provisional"] else ""
    told = dict(part.split(": ", 1) for part in ROWS[row_of(name)]["status"].split("; ") if part.startswith("`"))
    assert told.get(f"`{name}`", status(row_of(name))) == f"run: {written['outcome']}{tag}"
    assert f"**{written['outcome']}{tag}**" in text and f"(studies/{name}/verdict.json)" in text
    assert re.search(rf"^!\[.{{50,}}\]\(studies/{name}/[a-z_0-9-]+.svg\)$", text, re.MULTILINE)
    machine = r"(2 CPU cores|one H100), .*\d+ (s|min)"
    assert re.search(rf"^`python -m align.study study={name}[^`]*` · .* · {machine}", text, re.MULTILINE)
    assert f"[{name}.py](../scripts/studies/{name}.py)" in text and written["as_declared"] is True


def test_nothing_is_answered_that_was_not_run():
    assert {*ANSWERED} == {folder.name for folder in STORED.iterdir()}


def test_every_answer_has_a_recipe_and_every_recipe_an_answer():
    assert sorted(RECIPES) == sorted(ANSWERED)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_one_study_and_says_what_it_asks(name):
    text = RECIPES[name].read_text("utf-8")
    assert text.startswith(f'"""{DECLARED[name]["question"]["en"]}\n')
    assert re.findall(r"main\(.*", text) == [f'main(["study={name}", *sys.argv[1:]]))']


def test_a_recipe_runs_from_any_working_directory(tmp_path):
    """The study that is quickest to compute."""
    path = {**os.environ, "PYTHONPATH": str(ROOT)}  # as an installation has it
    done = subprocess.run(
        [sys.executable, RECIPES["gae_lambda"]], cwd=tmp_path, env=path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("CONFIRMED\n"), done.stderr
    stored = json.loads((STORED / "gae_lambda" / "verdict.json").read_text("utf-8"))
    assert json.loads((tmp_path / "studies/gae_lambda/verdict.json").read_text("utf-8"))["outcome"] == stored["outcome"]
    assert (tmp_path / "studies/gae_lambda/figure.svg").exists()


def half(lam: float) -> dict:
    return {"kappa": 0.5, "gamma": 1.0, "lambda": lam}


# study, table, row, column, and how its number stands in the answer
NUMBERS = [
    ("kl_estimators", "values", {"estimator": "k3", "shift": 0.1}, "std", "{:.2f} times the KL"),
    ("kl_estimators", "values", {"estimator": "k1", "shift": 0.1}, "std", "k1's is {:.0f} times"),
    ("kl_estimators", "values", {"estimator": "k2", "shift": 0.1}, "bias", "by {:.2%} of the KL at 0.005 nats"),
    ("kl_estimators", "values", {"estimator": "k2", "shift": 1.0}, "bias", "by {:.0%} at 0.5"),
    ("gae_lambda", "bias and variance", half(0.0), "variance", "with a variance of {:.2f}"),
    ("gae_lambda", "bias and variance", half(0.95), "variance", "at λ = 0.95, with {:.2f}"),
    ("gae_lambda", "bias and variance", half(1.0), "variance", "at λ = 1, with {:.2f}"),
    ("gae_lambda", "weights", {"gamma": 1.0, "lambda": 0.95, "T": 48}, "weight", "{:.3f} of 48"),
    ("gae_lambda", "weights", {"gamma": 1.0, "lambda": 0.95, "T": 96}, "weight", "{:.4f} of 96"),
    ("gae_lambda", "weights", {"gamma": 0.99, "lambda": 1.0, "T": 96}, "weight", "{:.3f} of 96"),
    ("grpo_bias", "prompts", {"p": 0.1}, "grpo", "{:.2f} at a success rate of 0.1"),
    ("grpo_bias", "prompts", {"p": 0.5}, "grpo", "{:.2f} at 0.5"),
    ("grpo_bias", "tokens", {"algorithm": "grpo"}, "short over long", "{:.0f} times lighter"),
    ("baseline_variance", "two prompts", {"baseline": "none", "k": 4, "offset": 4.0}, "variance", "{:.2f} without one"),
    ("baseline_variance", "two prompts", {"baseline": "leave-one-out", "k": 4, "offset": 4.0}, "variance",
     "{:.3f} with the mean of the siblings"),
    ("baseline_variance", "two prompts", {"baseline": "group mean", "k": 2, "offset": 0.0}, "scale", "{:.3f}, 0.750"),
    ("baseline_variance", "two prompts", {"baseline": "group mean", "k": 8, "offset": 0.0}, "scale", "and {:.3f} at k"),
    ("dapo_tricks", "no signal", {"G": 4, "p": 0.1}, "share", "{:.1%} of the groups of 4,"),
    ("dapo_tricks", "no signal", {"G": 8, "p": 0.1}, "share", "{:.1%} of 8"),
    ("dapo_tricks", "no signal", {"G": 16, "p": 0.1}, "share", "{:.1%} of 16"),
    ("dapo_tricks", "no signal", {"G": 4, "p": 0.1}, "share after 3 draws", "leaves {:.1%} of the groups"),
    ("dapo_tricks", "no signal", {"G": 4, "p": 0.1}, "drawn for each kept", "at {:.2f} prompts drawn"),
    ("dapo_tricks", "clip", {"algorithm": "dapo", "advantage": 1}, "0.01 becomes", "become {:.4f} in one"),
    ("dapo_tricks", "clip", {"algorithm": "ppo", "advantage": 1}, "0.01 becomes", "instead of {:.4f},"),
    ("dapo_tricks", "weights", {"algorithm": "dapo"}, "80 tokens", "80 tokens {:.2f} of the step"),
    ("dapo_tricks", "weights", {"algorithm": "grpo"}, "80 tokens", "(GRPO: {:.2f})"),
    ("dapo_tricks", "ramp", {"length": 17408}, "penalty", "{:.2f} at 17,408"),
    ("goodhart_tails", "gold", {"error": "light", "n": 16}, "gold", "{:.2f} SD at n = 16"),
    ("goodhart_tails", "gold", {"error": "light", "n": 4096}, "gold", "{:.2f} at 4,096: noise"),
    ("goodhart_tails", "gold", {"error": "heavy", "n": 4096}, "gold", "is {:.2f} at 4,096,"),
    ("goodhart_tails", "gold", {"error": "extremal", "n": 64}, "gold", "is {:.2f} at n = 64"),
    ("lora_init", "tiny model", {"init": "both_random"}, "KL to the base", "{:.4f} nats from its base"),
]  # fmt: skip


@pytest.mark.parametrize(("study", "title", "where", "column", "said"), NUMBERS)
def test_the_numbers_of_an_answer_are_those_that_were_computed(study, title, where, column, said):
    expected = said.format(row(study, title, **where)[column]).replace("%", " %").replace("-", "−")
    assert expected in " ".join(answer(study).split())


def test_numbers_that_come_from_several_rows():
    def weight(K: int) -> float:
        return row("grpo_bias", "groups", K=K, p=0.1)["grpo"] / row("grpo_bias", "groups", K=K, p=0.5)["grpo"]

    def top(error: str) -> dict:
        return max((r for r in table("goodhart_tails", "gold") if r["error"] == error), key=lambda r: r["gold"])

    biases = [-row("gae_lambda", "bias and variance", **half(lam))["bias"] for lam in (0.0, 0.95)]
    for study, said in (
        ("grpo_bias", f"is {weight(4):.2f} in groups of 4, {weight(8):.2f} in groups of 8 and {weight(64):.2f} in"),
        ("gae_lambda", f"off by {biases[0]:.0%}".replace("%", " %")),
        ("gae_lambda", f"by {biases[1]:.0%} at λ = 0.95".replace("%", " %")),
        ("goodhart_tails", f"it rises to {top('heavy')['gold']:.2f} at n = {top('heavy')['n']}"),
        ("goodhart_tails", f"it turns at n = {top('extremal')['n']}"),
    ):
        assert said in " ".join(answer(study).split()), said
