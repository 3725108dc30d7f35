"""What can only be seen on an accelerator; skipped without one."""

from __future__ import annotations

import pytest
import torch

from align.runs import read
from tests.end_to_end.helpers import execute, no_warmup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("algo", ["grpo", "rloo", "dr_grpo", "dpo", "sft", "reward"])
def test_every_kind_of_run_trains_on_the_accelerator_and_starts_at_its_reference(tmp_path, algo):
    path = execute(tmp_path, "device=cuda", "dtype=bfloat16", "steps=2", *no_warmup(algo))
    run = read(path)
    assert run.state == "finished"
    assert run.meta["dtype"] == "bfloat16"
    first = run.phase("probe")[0]
    assert all(first[key] == 0 for key in ("kl/k1", "kl/k3", "kl/exact") if key in first)
