from __future__ import annotations

import csv
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from align.alarms import Alarm
from align.compare import main, parse
from align.report import diagnostics, samples
from align.report.arms import group, load
from tests.runs.fake_runs import ALGO, PROMPTS, config, write_run, write_sweep

ROOT = Path(__file__).resolve().parents[2]
TWO = ("gap-step", "logprobs-step")  # two curves per arm
FIGURES = ("frontier-proxy", "frontier-gold", "proxy-step", "gold-step", "length-step", "kl-step", "length-kl",
           "entropy-step", "distinct2-step", "self-bleu-step", "gold-tokens", "gold-seconds", *TWO)  # fmt: skip
TABLES = {"index.html", "summary.csv", "summary.md", "pairwise.csv", "matched.csv"}
HOSTILE = '$x^2$ <script>alert(1)</script> <b>& "bold"</b> ]]> --> \x1b[31mred \x00 \u202eabc LONE {{ 7 * 7 }} [red]'


class Page(HTMLParser):
    """Elements, attributes and text of a page, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.text = self.text[:-1] if tag == "wbr" else self.text  # a place to break is no space
        self.links += [value or "" for name, value in attributes if name.split(":")[-1] in ("href", "src", "srcset")]

    def handle_data(self, data):
        self.text += f"{data} "


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def out(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "new" / "folder"
    assert main([*map(str, sweep), f"out={folder}"]) == 0
    return folder


def compared(tmp_path, *paths) -> Page:
    assert main([*map(str, paths), f"out={tmp_path / 'out'}"]) == 0
    return Page((tmp_path / "out" / "index.html").read_text("utf-8"))


def test_everything_promised_is_written(out):
    expected = {*TABLES, *(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png"))}
    assert {path.name for path in out.iterdir()} == expected
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)


def test_the_page_asks_for_nothing_but_the_files_beside_it(out):
    for link in Page((out / "index.html").read_text("utf-8")).links:
        assert link.startswith("#") or (out / link).is_file(), link


def test_every_point_of_every_figure_tells_its_values_on_hover(out):
    for name in FIGURES:
        svg = ElementTree.parse(out / f"{name}.svg")
        titles = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}title")]
        arms = {"gold-tokens": 1}.get(name, len(ALGO) * (1 + (name in TWO)))  # grpo alone samples
        assert len(titles) == arms * 3, name  # each at steps 0, 10 and 20
        assert [t.splitlines()[0] for t in titles[:3]] == [f"grpo, step {step} (3 seeds)" for step in (0, 10, 20)]


def test_ids_are_unique_in_the_page(out):
    ids = re.findall(r'\bid="([^"]*)"', (out / "index.html").read_text("utf-8"))
    assert len([i for i in ids if i.startswith("frontier-proxy-")]) > 10
    assert not {i for i in ids if ids.count(i) > 1 and "-m" not in i and "-p" not in i}


def test_figures_are_captioned_in_one_sentence_and_axes_carry_units(out):
    text = Page((out / "index.html").read_text("utf-8")).text
    for words in ("KL to the reference, exact (nats per sequence)", "length (tokens)", "proxy reward: learned"):
        assert words in text
    captions = re.findall(r"<figcaption>(.*?)<span", (out / "index.html").read_text("utf-8"), re.S)
    assert len(captions) == len(FIGURES) and all(c.strip().endswith(".") and c.count(". ") <= 1 for c in captions)


def test_summary_csv_holds_the_means_over_seeds(sweep, out):
    rows = {row["arm"]: row for row in csv.DictReader((out / "summary.csv").open())}
    assert list(rows) == ["grpo", "dpo", "sft"]
    arms, _ = group(load(sweep))
    ends = [run.probes[20]["reward/gold"] for run in arms[1].seeds]
    starts = [run.probes[0]["reward/gold"] for run in arms[1].seeds]
    dpo = rows["dpo"]
    assert float(dpo["reward/gold end"]) == pytest.approx(sum(ends) / 3)
    assert float(dpo["reward/gold change"]) == pytest.approx(sum(ends) / 3 - sum(starts) / 3)
    assert (dpo["reward/gold change seeds"], dpo["reward/gold change prompts"]) == ("3", str(len(PROMPTS)))
    assert (dpo["seeds"], dpo["step"], dpo["prompts"]) == ("3", "20", "80.0")  # two of 40 before the last probe


def test_the_terminal_shows_a_table_of_80_columns_and_the_page_last(sweep, tmp_path):
    command = [sys.executable, "-m", "align.compare", *map(str, sweep), f"out={tmp_path / 'o'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"COLUMNS": "80", "PATH": ""})
    assert done.returncode == 0 and done.stderr == ""
    *table, last = done.stdout.splitlines()
    assert last == str(tmp_path / "o" / "index.html")
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table if "→" in line] == ["grpo", "dpo", "sft"]


def test_a_whole_comparison_needs_no_torch(sweep, tmp_path):
    code = "import sys; from align.compare import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(sweep[0]), f"out={tmp_path / 'o'}"]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.endswith("False\n")


def test_the_same_runs_give_the_same_page(sweep, out, tmp_path):
    main([*map(str, sweep), f"out={tmp_path}"])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in out.iterdir()}


def test_one_run_makes_a_page_of_its_own(sweep, tmp_path):
    found = compared(tmp_path, sweep[0])
    assert "grpo smollm2-135m annotator" in found.text
    assert f"grpo: one seed, over {len(PROMPTS)} prompts" in " ".join(found.text.split())
    assert "What differs" not in found.text


def test_what_differs_is_shown_and_what_is_shared_is_not_repeated(tmp_path):
    first = write_run(tmp_path / "a", config(algo__kl__coef=0.0))
    found = compared(tmp_path, first, write_run(tmp_path / "b", config(algo__kl__coef=0.1)))
    differences = found.text.split("What differs between these runs")[1].split("Everything else")[0]
    assert differences.split() == ["key", "●", "kl.coef=0", "■", "kl.coef=0.1", "algo.kl.coef", "0", "0.1"]


def test_model_output_prompts_and_names_are_text_and_nothing_else(tmp_path, capsys, monkeypatch):
    renamed = config("grpo", algo__name=HOSTILE, algo__advantage=HOSTILE, reward__formula=HOSTILE)
    paths = [
        write_run(
            tmp_path / "a", config("dpo", data__name=HOSTILE), texts=(HOSTILE, HOSTILE), meta={"commit": HOSTILE}
        ),
        write_run(tmp_path / "b", renamed, texts=(HOSTILE, HOSTILE), state="failed", events=[(HOSTILE, 3, HOSTILE)]),
    ]
    monkeypatch.setattr(diagnostics, "alarms", lambda rows: [Alarm(10, HOSTILE, HOSTILE)])
    for path in paths:  # JSON can hold a lone surrogate, UTF-8 cannot
        (path / "samples.jsonl").write_text(
            (path / "samples.jsonl").read_text("utf-8").replace("LONE", r"\ud800"), "utf-8"
        )
    found = compared(tmp_path, *paths)
    html = (tmp_path / "out" / "index.html").read_text("utf-8")  # a parser swallows what stands in a stray <script>
    assert re.findall(r"<(script|b|img)\b", html) == ["script"] == [tag for tag in found.tags if tag in ("script", "b")]
    assert found.text.count("<script>alert(1)</script>") > 2 * len(PROMPTS)
    assert "␛[31mred ␀ \ufffdabc \ufffd {{ 7 * 7 }}" in found.text  # samples
    assert "␛[31mred ␀ \ufffdabc LONE {{ 7 * 7 }}" in found.text  # names
    written = [path.read_text("utf-8") for path in (tmp_path / "out").iterdir() if path.suffix != ".png"]
    assert len(written) == len(TABLES) + len(FIGURES)
    for text in (capsys.readouterr().out, *written):
        assert not set(text) & set("\x00\x1b\u202e")
    for name in FIGURES:
        svg = ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        drawn = [text.text or "" for text in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert (
            any(text.startswith("$x^2$ <script>") for text in drawn) or name == "gold-tokens"
        )  # no markup, no formula
        titles = [title.text or "" for title in svg.iter("{http://www.w3.org/2000/svg}title")]
        if name != "gold-tokens":  # of the arm that samples: neither markup nor a formula
            assert any(text.startswith("$x^2$ <script>") for text in drawn)
            assert any("<script>" in title for title in titles)
    markdown = (tmp_path / "out" / "summary.md").read_text("utf-8")
    assert not re.search(r"<|(?<!\\)[`\[$]", markdown) and "&lt;script&gt;" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert len(set(cells)) <= 6 and len(tables) > 20  # as many cells as the head of its table has
    (first, second) = csv.DictReader((tmp_path / "out" / "summary.csv").open("r", encoding="utf-8", newline=""))
    assert "<script>" in second["arm"] and None not in first and None not in second


def test_the_page_runs_no_script_but_its_own(out):
    html = (out / "index.html").read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_states_of_unfinished_runs_are_shown(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", config(seed=0))
    write_run(tmp_path / "runs" / "b", config(seed=1), steps=(0, 10), state="failed")
    found = compared(tmp_path, *sorted((tmp_path / "runs").iterdir()))
    assert "1 finished and 1 failed" in found.text and "1 of 2" in found.text
    warning = "grpo seed 1: failed, last probe at step 10"
    assert warning in found.text and f"WARNING {warning}" in capsys.readouterr().out


def test_a_run_that_has_not_begun_still_has_a_page(tmp_path):
    found = compared(tmp_path, write_run(tmp_path / "run", config(), steps=(), state="running"))
    assert "no probe yet" in found.text and "svg" not in found.tags


def test_figures_of_an_earlier_comparison_do_not_stay_behind(tmp_path):
    run = write_run(tmp_path / "run", config())
    compared(tmp_path, run)
    assert (tmp_path / "out" / "gold-step.png").exists()
    for name in ("metrics.jsonl", "samples.jsonl"):
        text = re.sub(r'"(reward/gold|win/gold|gold)": [-\d.e]+', r'"\1": null', (run / name).read_text())
        (run / name).write_text(text)
    found = compared(tmp_path, run)
    assert not list((tmp_path / "out").glob("*gold*")) and "gold reward" not in found.text


def test_without_exact_kl_in_every_arm_the_page_uses_k1_for_all(tmp_path):
    first, other = write_run(tmp_path / "a", config("grpo")), write_run(tmp_path / "b", config("dpo"))
    metrics = other / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("kl/exact", "kl/other"))
    text = compared(tmp_path, first, other).text
    assert "KL, k1" in text and "KL, exact" not in text


def test_step_zero_stands_once_where_all_arms_share_it(sweep):
    arms, _ = group(load(sweep))
    found = samples.browser(arms)
    assert (len(found.entries), found.shown, found.total) == (len(PROMPTS), 2 * len(PROMPTS), 2 * len(PROMPTS))
    row = found.entries[0].rows[0]
    assert row.shared_start.step == 0
    assert [(column.end.step, column.start) for column in row.columns] == [(20, None)] * 3
    assert len({column.end.text for column in row.columns}) == 3


def test_a_full_page_keeps_the_first_sample_of_every_prompt_and_counts_the_rest(sweep, monkeypatch):
    arms, _ = group(load(sweep))
    monkeypatch.setattr(samples, "PAGE_CHARACTERS", 15_000)
    found = samples.browser(arms)
    assert len(PROMPTS) <= found.shown < found.total == 2 * len(PROMPTS)
    assert all(entry.rows[0].sample == 0 for entry in found.entries) and len(found.entries) == len(PROMPTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "at least one run directory"),
        (["nowhere"], "nowhere: no such run directory"),
        (["."], "is not a run directory"),
        (["--verbose"], "--verbose: not understood"),
        (["out="], "out=: "),
        (["RUN", "out=FILE"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(tmp_path, sweep, capsys, arguments, said):
    (tmp_path / "file").write_text("in the way")
    filled = [a.replace("RUN", str(sweep[0])).replace("FILE", str(tmp_path / "file")) for a in arguments]
    assert main(filled) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and said in captured.err


def test_help_names_what_is_read_and_what_is_written(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("RUN_DIR", "out=DIR", "index.html", "summary.csv", "example:"))


def test_a_folder_stands_for_the_runs_in_it_and_stages_and_sweeps_are_left_out(tmp_path, capsys):
    made = [write_run(tmp_path / "runs" / name, config(name)) for name in ("dpo", "grpo")]
    write_run(tmp_path / "runs" / "stages" / "reward", config("sft"))
    assert parse([str(tmp_path / "runs")])[0] == made
    assert parse([str(made[0]), str(tmp_path / "runs" / "stages")])[0] == made[:1]
    assert "stages is left out" in capsys.readouterr().err
