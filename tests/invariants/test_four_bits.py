"""model.quant=nf4: a base in 4 bits under every role; the CPU does it too, where bitsandbytes is installed."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from peft import TaskType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from align import quant
from align.embedded import ModelError, tiny_folder
from align.models import load_base, load_policy, twin
from align.runs import read
from tests.config.test_conf import composed
from tests.end_to_end.helpers import adapter_moved, execute, logprobs, run_and_keep

CPU = torch.device("cpu")
FOUR_BITS = ("model.quant=nf4", "sampling.lora=unmerged")
installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The tiny model with rows of 64 and 128 weights: blocks of 64 share a scale."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    config = AutoConfig.from_pretrained(tiny_folder())
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"model.path={folder}"


def settings(*overrides: str):
    return composed("model=tiny", *FOUR_BITS, *overrides).model


def test_without_the_package_it_is_refused_before_a_model_is_looked_for(monkeypatch):
    monkeypatch.setattr("align.models.locate", lambda path: pytest.fail("it looked for the model"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="model.quant=nf4 needs a package: pip install bitsandbytes"):
        load_base(settings(), CPU, torch.float32)


@installed
def test_a_device_that_the_package_does_not_know_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("align.models.locate", lambda path: pytest.fail("it looked for the model"))
    with pytest.raises(ModelError, match="does not know device=meta, only .*cpu"):
        load_base(settings(), torch.device("meta"), torch.float32)


@installed
def test_rows_that_the_package_unpacks_wrongly_on_a_cpu_are_refused():
    with pytest.raises(ModelError, match="q_proj has 32 inputs, no multiple of 64"):
        load_base(settings(), CPU, torch.float32)


@installed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_multiplies_with_its_unpacked_weight_and_hands_the_gradient_on(wide, dtype):
    base = load_base(settings(wide), CPU, dtype).eval()
    layer = base.model.layers[0].mlp.gate_proj
    assert isinstance(layer, quant.FourBitLinear) and layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == layer.in_features * layer.out_features // 2
    with torch.no_grad():  # a pass without a gradient must not change what a later one with a gradient sees
        layer(torch.randn(2, layer.in_features, dtype=dtype))
    x = torch.randn(3, layer.in_features, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    by_hand = x.detach().clone().requires_grad_()
    (by_hand @ layer.unpacked().mT).square().sum().backward()
    torch.testing.assert_close(x.grad, by_hand.grad)
    assert x.grad.any()


@installed
def test_four_bits_are_near_the_weights_and_the_head_is_what_it_was(wide):
    packed, plain = (load_base(cfg, CPU, torch.float32) for cfg in (settings(wide), composed("model=tiny", wide).model))
    for one, other in zip(packed.model.layers, plain.model.layers, strict=True):
        w, exact = one.self_attn.q_proj.unpacked(), other.self_attn.q_proj.weight
        assert 0 < (w - exact).norm() / exact.norm() < 0.11  # NF4 of normal weights: 9 %
    assert torch.equal(packed.lm_head.weight, plain.lm_head.weight)


@installed
def test_policy_and_reference_share_the_packed_weights_and_agree_at_the_start(wide):
    policy = load_policy(settings(wide), CPU, torch.float32, seed=0)
    here, there = ({name: m for name, m in model.named_modules() if isinstance(m, quant.FourBitLinear)}
                   for model in (policy.model, policy.reference))  # fmt: skip
    assert len(here) == len(there) == 14
    assert {m.weight.data_ptr() for m in here.values()} == {m.weight.data_ptr() for m in there.values()}
    assert torch.equal(logprobs(policy.model), logprobs(policy.reference))
    plain = load_policy(composed("model=tiny", wide).model, CPU, torch.float32, seed=0)
    assert policy.fingerprint != plain.fingerprint


@installed
@pytest.mark.parametrize(
    ("algo", "more"),
    [("sft", ()), ("dpo", ("algo.pairs_per_step=4",)), ("grpo", ()), ("ppo", ()),
     ("grpo", ("reward=learned", "reward.formula=learned", "reward.learned.steps=2",
               "reward.learned.algo.optimizer.warmup_steps=0"))],
)  # fmt: skip
def test_runs_train_the_adapter_and_leave_the_base_as_it_was(tmp_path, wide, algo, more):
    short = ("steps=2", "probe.every=1", "algo.optimizer.warmup_steps=0")
    path, policy = run_and_keep(tmp_path, f"algo={algo}", wide, *FOUR_BITS, *short, *more)
    rows = [row for row in read(path).rows if row["phase"] == "probe"]
    assert rows[0]["kl/exact"] == 0 and rows[-1]["kl/exact"] > 0
    assert adapter_moved(load_file(path / "adapter" / "adapter_model.safetensors"))
    fresh = load_policy(settings(wide), CPU, torch.float32, seed=0)
    assert torch.equal(logprobs(policy.reference), logprobs(fresh.reference))


@installed
def test_a_run_on_four_bits_is_no_start_for_another(tmp_path, wide):
    path = execute(tmp_path, "algo=sft", wide, *FOUR_BITS, "steps=1", "probe.every=1", "algo.optimizer.warmup_steps=0")
    with pytest.raises(ModelError, match="belongs to a base of model.quant=nf4"):
        load_base(composed("model=tiny", wide, f"model.start={path}").model, CPU, torch.float32)


@installed
def test_twins_and_copies_of_a_packed_base_say_the_same(wide):
    from align.models import add_adapter

    base = load_base(settings(wide), CPU, torch.float32).eval()
    said = logprobs(base)
    adapted = add_adapter(twin(base), settings().lora, TaskType.CAUSAL_LM)
    assert torch.equal(logprobs(adapted), said)
    assert torch.equal(logprobs(copy.deepcopy(base)), said)
