"""What a run leaves behind is the policy it trained, for plain PEFT and transformers, and for the next run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from align.embedded import tiny_folder
from align.runs import read
from tests.config.test_conf import composed
from tests.end_to_end.helpers import adapter_moved, logprobs, no_warmup, run_and_keep

SFT = (*no_warmup("sft"), "steps=2", "algo.optimizer.lr=0.05")
ADAPTERS = {
    "default": (),
    "pissa": ("model.lora.init=pissa",),
    "olora": ("model.lora.init=olora",),
    "b_random": ("model.lora.init=b_random",),
    "both_random": ("model.lora.init=both_random",),
    "dora": ("model.lora.dora=true",),
    "rslora": ("model.lora.rslora=true", "model.lora.targets=[q_proj,down_proj]"),
}
# What any user of PEFT would write. Arguments: adapters; logprobs are put into each as plain.pt.
PLAIN = """
import sys, torch
from peft import AutoPeftModelForCausalLM
for adapter in sys.argv[1:]:
    model = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    with torch.no_grad():
        torch.save(model(input_ids=torch.arange(5, 261).unsqueeze(0)).logits[0].log_softmax(-1), adapter + "/plain.pt")
print("align" in sys.modules)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """name -> run directory and policy, of an SFT run with each kind of adapter."""
    root = tmp_path_factory.mktemp("adapters")
    runs = {name: run_and_keep(root, *SFT, *overrides) for name, overrides in ADAPTERS.items()}
    start = runs["default"][0]
    return runs | {"after a start": run_and_keep(root, *SFT, f"model.start={start}", "seed=1")}


@pytest.fixture(scope="module")
def plainly_loaded(trained):
    """name -> logprobs of the saved adapter, loaded by a fresh process that knows PEFT only."""
    adapters = {name: path / "adapter" for name, (path, _) in trained.items()}
    command = [sys.executable, "-c", PLAIN, *map(str, adapters.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=adapters["default"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    return {name: torch.load(adapter / "plain.pt", weights_only=True) for name, adapter in adapters.items()}


@pytest.mark.parametrize("name", [*ADAPTERS, "after a start"])
def test_the_adapter_is_the_trained_policy_for_plain_peft(trained, plainly_loaded, name):
    policy = trained[name][1]
    assert_close(plainly_loaded[name], logprobs(policy.model), rtol=0, atol=1e-6)
    assert (logprobs(policy.model) - logprobs(policy.reference)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_an_init_that_rewrote_the_base_is_not_asked_of_who_loads_the_adapter(trained, name):
    """Loading would decompose the base anew, and depend on the signs that a machine's SVD or QR happens to choose."""
    config = json.loads((trained[name][0] / "adapter" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == 2 * composed("model=tiny").model.lora.rank


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "both_random"])
def test_every_adapter_starts_from_the_model_itself(trained, name):
    assert_close(logprobs(trained[name][1].reference), logprobs(trained["default"][1].reference), rtol=0, atol=1e-6)


def test_without_lora_the_whole_model_is_saved(tmp_path):
    path, policy = run_and_keep(tmp_path, *SFT, "model.lora=none")
    assert not (path / "adapter").exists()
    assert_close(logprobs(AutoModelForCausalLM.from_pretrained(path / "model")), logprobs(policy.model), rtol=0, atol=0)
    assert (logprobs(policy.model) - logprobs(policy.reference)).abs().max() > 0.1
    start = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    assert_close(logprobs(policy.reference), logprobs(start), rtol=0, atol=1e-6)  # trained beside it, not with it


@pytest.mark.parametrize("lora", [(), ("model.lora=none",)], ids=["adapter", "whole model"])
def test_the_next_run_starts_where_the_last_one_ended(tmp_path, lora):
    start, first = run_and_keep(tmp_path, *SFT, *lora)
    path, second = run_and_keep(
        tmp_path, "algo=dpo", "algo.optimizer.warmup_steps=0", "steps=1", f"model.start={start}"
    )
    assert_close(logprobs(second.reference), logprobs(first.model), rtol=0, atol=1e-6)
    assert read(path).phase("probe")[0]["kl/exact"] == 0
    assert read(path).meta["start_fingerprint"] != read(start).meta["start_fingerprint"]
    assert adapter_moved(load_file(path / "adapter" / "adapter_model.safetensors"))


def test_a_chain_of_starts_keeps_every_link(tmp_path):
    """sft -> sft -> dpo: the middle run's adapter alone is relative to the first one's weights."""
    first, _ = run_and_keep(tmp_path, *SFT)
    second, policy = run_and_keep(tmp_path, *SFT, f"model.start={first}", "seed=1")
    third, last = run_and_keep(tmp_path, *no_warmup("dpo"), "steps=1", f"model.start={second}")
    assert_close(logprobs(last.reference), logprobs(policy.model), rtol=0, atol=1e-6)
    prints = {read(path).meta["start_fingerprint"] for path in (first, second, third)}
    assert len(prints) == 3
