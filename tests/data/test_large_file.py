"""A file larger than what a run may hold; the whole version: ALIGN_FILE_MB=1024 pytest tests/data/test_large_file.py"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from align.data import DataError
from tests.data.test_jsonl_data import pairs, read, write
from tests.end_to_end.helpers import no_warmup

MB = int(os.environ.get("ALIGN_FILE_MB", "48"))
LIMIT_MB = 300 if MB >= 1024 else 16  # records that are held whole take more than their file
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")


def large(path: Path, megabytes: int) -> Path:
    """Pairs of about 2,500 bytes, a third of them of a prompt that another pair has too."""
    words = [f"{a}{b}" for a in ("lo", "ra", "mi", "ten", "so") for b in ("per", "na", "dic", "ta", "vos", "x")]
    rng, size, number = random.Random(0), 0, 0
    with path.open("w") as file:
        while size < megabytes * 2**20:
            said = [" ".join(rng.choices(words, k=k)) for k in (40, 210, 210)]
            prompt = f"Question {number * 2 // 3}: what is {number * 2 // 3}?"
            row = {"prompt": prompt, "chosen": f"{said[0]} {said[1]}", "rejected": f"{number} {said[2]}"}
            size += file.write(json.dumps(row) + "\n")
            number += 1
    return path


def peak_anonymous_mb(command: list[str], folder: Path) -> float:
    """The most anonymous memory of a process that must end well."""
    with (folder / "said.txt").open("w") as said:
        child = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        while child.poll() is None:
            try:
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            except OSError:
                break
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.02)
    assert child.wait() == 0, (folder / "said.txt").read_text()
    return peak / 1024


LOADING = """
import sys
from types import SimpleNamespace
from align.data import load
none = dict(max_prompt_tokens=None, max_completion_tokens=None)
data = load(SimpleNamespace(kind="jsonl", name="mine", path=sys.argv[1], heldout=0.1, **none), None, 0, None)
assert data.train_pairs[-1].chosen and data.heldout_prompts[:64] and data.train_prompts[7]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {name: large(folder / f"{name}.jsonl", size) for name, size in (("small", 1), ("large", MB))}


def grown(files: dict[str, Path], folder: Path, command: Callable[[str, Path], list[str]]) -> float:
    took = {name: peak_anonymous_mb(command(name, file), folder) for name, file in files.items()}
    print(f"{MB} MB: {took['large'] - took['small']:.0f} MB more than with 1 MB, {took['large']:.0f} MB in all")
    return took["large"] - took["small"]


@needs_proc
def test_of_a_large_file_only_the_places_of_its_lines_are_held(files, tmp_path):
    assert grown(files, tmp_path, lambda name, file: ["-c", LOADING, str(file)]) < LIMIT_MB


@needs_proc
@pytest.mark.skipif(MB < 1024, reason="a whole run's peak differs by 90 MB from run to run; ALIGN_FILE_MB=1024")
def test_a_run_on_a_large_file_holds_little_more_than_one_on_a_small_file(files, tmp_path):
    asked = ["model=tiny", "steps=2", "probe.prompts=2", "probe.pairs=4", "algo.pairs_per_step=2", "algo.micro_batch=2",
             "sampling.max_new_tokens=8", "data.max_completion_tokens=2048", "tracker=none"]  # fmt: skip

    def command(name: str, file: Path) -> list[str]:
        return ["-m", "align.run", *no_warmup("dpo"), "data=jsonl", f"data.path={file}", *asked, f"run_dir={name}"]

    assert grown(files, tmp_path, command) < LIMIT_MB


def test_what_is_asked_for_is_what_the_line_says(tmp_path):
    rows = [row | {"chosen": f"Well, {i}. é\u2028"} for i, row in enumerate(pairs(30))]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0).encode() for i, row in enumerate(rows)]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\n".join(lines))  # a byte order mark, blank lines, no last line end
    data = read(str(path))
    found = {pair.prompt.text: (pair.chosen, pair.rejected) for pair in [*data.train_pairs, *data.heldout_pairs]}
    assert found == {row["prompt"]: (row["chosen"], row["rejected"]) for row in rows}
    assert [pair.prompt for pair in data.train_pairs] == list(data.train_prompts)  # in the order of the file
    assert data.train_pairs[-1] == data.train_pairs[len(data.train_pairs) - 1] == data.train_pairs[-1:][0]
    with pytest.raises(IndexError):
        data.train_pairs[len(data.train_pairs)]


@pytest.mark.parametrize("change", ["longer", "gone", "rewritten"])
def test_a_file_that_changes_under_a_run_is_noticed(tmp_path, change):
    path = Path(write(tmp_path / "a.jsonl", pairs(20)))
    data = read(path)
    if change == "longer":
        with path.open("a") as file:
            file.write(json.dumps(pairs(1)[0]) + "\n")
    elif change == "gone":
        path.unlink()
    else:
        write(tmp_path / "b.jsonl", pairs(20))
        (tmp_path / "b.jsonl").rename(path)
    with pytest.raises(DataError, match="it has changed since this run began to read it"):
        data.train_pairs[0]
