"""A policy learns what it is rewarded for, and the opposite when the sign of the reward is turned.

The reward is the share of even tokens. A random policy earns about one half, so a sign error anywhere between the
reward and the weights ends below it.
"""

from __future__ import annotations

import pytest
import torch

from tests.end_to_end.helpers import EVEN, run

QUICK = ("steps=16", "sampling.max_new_tokens=4", "algo.group_size=16", "algo.micro_batch=64",
         "algo.optimizer.lr=0.01", "probe.prompts=16", "probe.every=1000", "probe.greedy=false")  # fmt: skip
CLIPPED = ("algo=grpo", "algo.epochs=2", "algo.minibatches=2", "algo.micro_batch=32", "algo.ratio.clip_low=0.2",
           "algo.ratio.clip_high=0.2", "steps=10")  # fmt: skip
ALGORITHMS = {"grpo": ("algo=grpo",), "rloo": ("algo=rloo",), "dr_grpo": ("algo=dr_grpo",), "grpo clipped": CLIPPED}


def share_of_even(record) -> tuple[float, float]:
    """Before training and after, as the probe sees it."""
    first, last = (row[f"reward/{EVEN}"] for row in record.phase("probe"))
    return first, last


@pytest.mark.parametrize("algo", list(ALGORITHMS))
def test_all_weights_learn_what_is_rewarded_and_unlearn_what_is_punished(tmp_path, algo):
    settings = (*QUICK, *ALGORITHMS[algo], "model.lora=none")
    rewarded = share_of_even(run(tmp_path, *settings, f"reward.formula={EVEN}"))
    punished = share_of_even(run(tmp_path, *settings, f"reward.formula=-{EVEN}"))
    assert rewarded[0] == punished[0] == pytest.approx(0.5, abs=0.2)
    assert rewarded[1] > 0.8
    assert punished[1] < 0.2


def test_so_does_an_adapter(tmp_path):
    """The tiny model's frozen head cannot prefer any token by more than a factor of two; this one has a bolder head."""
    settings = (*QUICK, "algo=grpo", "algo.optimizer.lr=0.02", f"model.path={bold(tmp_path / 'bold')}")
    rewarded = share_of_even(run(tmp_path, *settings, f"reward.formula={EVEN}"))
    punished = share_of_even(run(tmp_path, *settings, f"reward.formula=-{EVEN}"))
    assert rewarded[0] == punished[0]
    assert rewarded[1] > rewarded[0] + 0.1
    assert punished[1] < punished[0] - 0.2


def bold(folder) -> str:
    from transformers import AutoModelForCausalLM

    from align.tiny import build_tiny

    build_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("algo", ["grpo", "rloo"])
def test_a_larger_kl_coefficient_stays_nearer_to_the_reference(tmp_path, algo):
    settings = (*QUICK, f"algo={algo}", "model.lora=none")
    free, held = (run(tmp_path, *settings, f"algo.kl.coef={coef}").phase("probe")[-1] for coef in (1e-6, 3.0))
    assert free["kl/exact"] > 1
    assert held["kl/exact"] < 0.3
