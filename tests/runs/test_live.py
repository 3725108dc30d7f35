"""A run directory that is read while it is written: whole rows, in order, none twice, and never an error."""

from __future__ import annotations

import json
import multiprocessing
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from align import compare, watch_view
from align.report import arms
from align.runs import Run, read
from align.watched import Watched
from tests.runs.fake_runs import _probe, _samples, config

READS = 120


def write(path: str, stop) -> None:
    """Rows as a run logs them, and every third one in two writes with a pause between its halves."""
    with Run.create(Path(path), config(steps=10_000), {"name": "grpo smollm2-135m annotator"}) as run:
        step = 0
        while not stop.is_set():
            samples = _samples("grpo", 0, step, None)
            if step % 3 == 0:
                row = json.dumps({"phase": "train", "step": step, **run.counters, "seconds": 1.0, "loss": 0.5}) + "\n"
                for half in (row[: len(row) // 2], row[len(row) // 2 :]):
                    run._files["metrics.jsonl"].write(half)
                    run._files["metrics.jsonl"].flush()
                    time.sleep(0.05)
            else:
                run.log("train", step, {"loss": 0.5})
            run.log("probe", step, _probe("grpo", 0, step, samples))
            run.log_samples(samples)
            run.event("kl", step, f"step {step}: far")
            run.count(prompts=1, completions=8, gen_tokens=100)
            run.status("running")
            time.sleep(0.1)
            step += 1


def test_a_run_can_be_read_at_any_moment_of_its_writing(tmp_path, capsys):
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    writer = context.Process(target=write, args=(str(tmp_path / "run"), stop))
    writer.start()
    while not (tmp_path / "run" / "meta.json").is_file() or not read(tmp_path / "run").phase("probe"):
        time.sleep(0.01)
    watched, torn, seen = Watched(tmp_path / "run"), 0, []
    for number in range(READS):
        torn += not (tmp_path / "run" / "metrics.jsonl").read_bytes().endswith(b"\n")
        record = read(tmp_path / "run")
        assert record.state == "running"
        assert [row["step"] for row in record.phase("probe")] == list(range(len(record.phase("probe"))))
        seen.append(len(record.rows))
        if number % 10 == 0:
            (loaded,) = arms.load([tmp_path / "run"])
            assert loaded.record.state == "running"
        watched.poll()
        assert [row["step"] for row in watched.phase("train")] == list(range(len(watched.phase("train"))))
        Console(file=StringIO(), width=100).print(*watch_view.one_run(watched, 100))
    compare.compare([tmp_path / "run"], tmp_path / "page")
    stop.set()
    writer.join()
    assert writer.exitcode == 0 and seen == sorted(seen) and seen[-1] > seen[0]
    assert torn > 0, "no read met half a row"
    watched.poll()
    assert watched.state == "finished" and tuple(watched.metrics.rows) == read(tmp_path / "run").rows
    assert (tmp_path / "page" / "index.html").is_file()
