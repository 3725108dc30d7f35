"""model.quant=nf4 on an accelerator; skipped without one or without bitsandbytes."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from align import quant
from align.models import load_base
from align.runs import read
from tests.config.test_conf import composed
from tests.end_to_end.helpers import execute, no_warmup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"),
]
FOUR_BITS = ("model.quant=nf4", "sampling.lora=unmerged")


@pytest.mark.parametrize("algo", ["grpo", "ppo", "dpo", "sft"])
def test_a_run_on_four_bits_trains_and_starts_at_its_reference(tmp_path, algo):
    run = read(execute(tmp_path, "device=cuda", "dtype=bfloat16", "steps=2", *FOUR_BITS, *no_warmup(algo)))
    assert run.state == "finished"
    first = run.phase("probe")[0]
    assert all(first[key] == 0 for key in ("kl/k1", "kl/k3", "kl/exact"))


def test_a_packed_layer_lies_on_the_device_and_hands_the_gradient_on():
    base = load_base(composed("model=tiny", *FOUR_BITS).model, torch.device("cuda"), torch.bfloat16)
    layer = base.model.layers[0].mlp.gate_proj
    assert isinstance(layer, quant.FourBitLinear) and layer.weight.is_cuda
    x = torch.randn(3, layer.in_features, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.unpacked().sum(0).expand_as(x), rtol=2e-2, atol=2e-2)
