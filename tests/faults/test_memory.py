"""An address space that the declared micro-batch does not fit into: the run ends all the same, in smaller ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from align.rows import read_lines
from align.runs import RunRecord, read
from tests.end_to_end.helpers import BY_COMMAND, no_warmup
from tests.faults.child import within

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
COMMON = ("steps=1", "probe.prompts=2", "probe.pairs=2", "algo.optimizer.eps=1e-3", "seed=3")
LONG = {
    "dpo": (*no_warmup("dpo"), "data=jsonl", "data.max_completion_tokens=null", "reward.formula=none",
            "algo.pairs_per_step=16", "algo.micro_batch={}"),
    "grpo": ("algo=grpo", "algo.micro_batch={}", "algo.micro_batch_tokens=1000000",
             "sampling.max_new_tokens=256", "probe.samples=1"),
}  # fmt: skip


def pairs(path: Path) -> Path:
    rows = [{"prompt": f"What is {i}?", "chosen": "a" * (700 + i), "rejected": "b" * (720 - i)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@needs_proc
@pytest.mark.parametrize("algo", ["dpo", pytest.param("grpo", marks=BY_COMMAND)])
def test_a_run_that_runs_out_of_memory_goes_on_in_smaller_passes(tmp_path, algo):
    settings = (*LONG[algo], *COMMON, *([f"data.path={pairs(tmp_path / 'pairs.jsonl')}"] if algo == "dpo" else []))

    def run(name: str, rows: int, limit: int | None = None) -> tuple[RunRecord, int]:
        grown = within(tmp_path / name, limit, *(one.format(rows) for one in settings))
        return read(tmp_path / name / "run"), grown

    whole, most = run("whole", 16)
    _, least = run("small", 2)
    assert most > 1.3 * least, (most, least)
    limited, _ = run("limited", 16, (most + least) // 2)
    told = [event for event in read_lines(tmp_path / "limited" / "run" / "events.jsonl") if event["kind"] == "memory"]
    assert told and told[0]["rows"] == 16 > told[0]["rows_now"], (most, least)
    assert limited.state == "finished" and len(limited.phase("train")) == 1
    folders = [tmp_path / name / "run" / "adapter" for name in ("whole", "limited")]
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for key, value in expected.items():
        assert_close(found[key], value, rtol=1e-3, atol=1e-5)
