"""Same config and seed on one machine: the same numbers, bit for bit. Another seed: others."""

from __future__ import annotations

import pytest

from align.runs import stable
from tests.end_to_end.helpers import BY_COMMAND, no_warmup, run


@pytest.mark.parametrize("algo", ["grpo", "ppo", pytest.param("dapo", marks=BY_COMMAND), "dpo"])
def test_a_run_can_be_repeated_to_the_last_bit(tmp_path, algo):
    overrides = (*no_warmup(algo), "steps=3", "probe.every=2", "algo.optimizer.lr=0.01")
    once, again, other = (run(tmp_path, *overrides, f"seed={seed}") for seed in (7, 7, 8))
    assert once.path != again.path
    assert [stable(row) for row in once.rows] == [stable(row) for row in again.rows]
    assert once.samples == again.samples != []
    assert (once.path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        again.path / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert other.phase("train")[0]["optim/grad_norm"] != once.phase("train")[0]["optim/grad_norm"]
    assert other.samples != once.samples


def test_how_often_a_run_is_probed_does_not_change_what_it_learns(tmp_path):
    overrides = (*no_warmup("grpo"), "steps=4", "algo.optimizer.lr=0.01")
    often, seldom = (run(tmp_path, *overrides, f"probe.every={every}") for every in (1, 100))
    assert len(often.phase("probe")) == 5 and len(seldom.phase("probe")) == 2
    assert [stable(row) for row in often.phase("train")] == [stable(row) for row in seldom.phase("train")]
    assert stable(often.phase("probe")[-1]) == stable(seldom.phase("probe")[-1])
