"""The estimate by hand: what roles share, what ZeRO splits, how many tokens a pass has."""

from __future__ import annotations

import pytest

from align.memory.arguments import experiment_of
from align.memory.estimate import HOLES, estimate, full_copies, roles
from align.memory.load import load_of
from align.memory.states import METHODS

P, R = 134_515_008, 4_884_480  # SmolLM2-135M, and its adapter


def asked(*overrides: str):
    return experiment_of(dict(o.split("=", 1) for o in overrides))


def parts(*overrides: str) -> dict[str, float]:
    found = estimate(*asked(*overrides))
    return {part.name: part.size for part in (*found.held, *found.phases)}


def test_ppo_has_one_base_and_three_adapters_of_which_two_are_trained():
    found = parts("algo=ppo")
    assert found["base weights"] == 2 * P
    assert found["adapters"] == 3 * R * 4
    assert found["gradients"] == 2 * R * 4
    assert found["optimizer"] == 2 * R * 8


def test_a_head_critic_adds_nothing_of_the_models_size():
    assert parts("algo=ppo", "algo.critic.kind=head", "algo.critic.coef=0.1")["gradients"] == R * 4


def test_dpo_has_one_adapter():
    found = parts("algo=dpo")
    assert (found["adapters"], found["gradients"], found["optimizer"]) == (R * 4, R * 4, R * 8)


def test_without_lora_everything_is_in_the_base_dtype_and_the_reference_is_a_copy():
    found = parts("algo=dpo", "model.lora=none", "reward=none")
    assert [found[name] for name in ("policy weights", "reference weights", "gradients", "optimizer")] == [
        2 * P, 2 * P, 2 * P, 4 * P]  # fmt: skip


def test_float32_doubles_the_base():
    assert parts("dtype=float32")["base weights"] == 4 * P


def test_a_base_in_four_bits_is_what_was_measured_and_is_not_copied_to_be_sampled_from():
    # SmolLM2-135M: 109.8 MB of weights, packed and not (docs/log.md); beside them the scales of blocks of 64
    found = parts("algo=dpo", "model.quant=nf4", "sampling.lora=unmerged")
    linear = P - 49_152 * 576 - 61 * 576
    assert found["base weights"] == pytest.approx(109_777_536 + linear * (1 / 64 + 4 / (64 * 256)))
    assert found["sampling copy"] == 2 * 49_152 * 576  # the head, in the layout of the CPU's kernels


def test_zero_splits_optimizer_then_gradients_then_weights():
    whole = parts("gpus=8")
    for stage, names in ((1, ("optimizer",)), (2, ("optimizer", "gradients")),
                         (3, ("optimizer", "gradients", "adapters", "base weights"))):  # fmt: skip
        found = parts("gpus=8", f"zero={stage}")
        for name in ("optimizer", "gradients", "adapters", "base weights"):
            assert found[name] == whole[name] / (8 if name in names else 1), (stage, name)


def test_the_sampling_copy_is_the_linear_layers_and_on_a_cpu_the_head_in_another_layout():
    linear = 30 * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536)
    assert parts("gpus=1")["sampling copy"] == 2 * linear
    assert parts("gpus=0")["sampling copy"] == 2 * (linear + 49152 * 576)
    assert parts("gpus=0", "dtype=float32")["sampling copy"] == 4 * linear
    assert "sampling copy" not in parts("gpus=1", "sampling.lora=unmerged")
    assert "sampling copy" not in parts("algo=reward")


def test_a_gpu_has_no_libraries_and_float32_no_kernels():
    assert not {"process", "kernels"} & parts("gpus=1").keys()
    assert "kernels" in parts() and "kernels" not in parts("dtype=float32")


def test_caches_are_of_all_completions_and_of_their_prompts_once():
    """32 completions of 10 tokens, 4 prompts of 5, 46,080 bytes a token in float32; 32 rows of logits, 2 + 4 bytes."""
    overrides = ("sampling.max_new_tokens=10", "prompt_tokens=5", "probe.prompts=4")
    assert parts(*overrides)["sampling"] == 46_080 * (32 * 10 + 4 * 5) + 32 * 49152 * 6
    assert parts(*overrides, "gpus=1")["sampling"] == 23_040 * (32 * 10 + 4 * 5) + 32 * 49152 * 6


@pytest.mark.parametrize(("overrides", "tokens", "predicted"), [
    (("algo=dpo", "prompt_tokens=10", "completion_tokens=20"), 4 * (10 + 2 * 19), 8 * 20),
    (("algo=sft", "prompt_tokens=10", "completion_tokens=20"), 4 * 29, 4 * 20),
    (("algo=reward", "prompt_tokens=10", "completion_tokens=20"), 4 * 50, 0),
    (("algo=grpo",), 1024, None),
    (("algo=grpo", "prompt_tokens=10", "completion_tokens=20"), 4 * (10 + 8 * 20), 32 * 20),
    (("algo=grpo", "prompt_tokens=10", "completion_tokens=20", "algo.micro_batch=8"), 10 + 8 * 20, 8 * 20),
    (("algo=grpo", "prompt_tokens=1000", "completion_tokens=100"), 1100, 100),  # one row that is longer than the bound
    (("algo=best_of_n",), 0, 0),
])  # fmt: skip
def test_tokens_of_a_training_pass(overrides, tokens, predicted):
    experiment, _, place = asked(*overrides)
    load = load_of(experiment, place)
    assert load.tokens == tokens
    assert predicted is None or load.predicted == pytest.approx(predicted)


@pytest.mark.parametrize("method", METHODS, ids=[method.names for method in METHODS])
def test_the_copies_of_an_experiment_are_those_of_the_table(method):
    """16 bytes for what is trained, 2 for what is not, with a learned reward where a reward is used."""
    for name in method.names.replace(" and alike", "").split(", "):
        experiment, shape, place = asked(f"algo={name}")
        assert full_copies(experiment, shape, place) == method.bytes_each * P, name


def test_a_rule_and_no_kl_need_no_frozen_model():
    assert roles(asked("algo=dr_grpo", "data=arithmetic")[0]).frozen == ()


def test_the_peak_is_what_is_held_and_the_largest_phase():
    found = estimate(*asked("algo=grpo"))
    assert found.largest.name == "training"
    assert found.peak == sum(part.size for part in found.held) + max(part.size for part in found.phases)


def test_on_a_cpu_a_training_pass_has_holes_and_nothing_else_has():
    there, here = (parts("algo=grpo", "dtype=float32", f"gpus={gpus}") for gpus in (1, 0))
    assert here["training"] == pytest.approx((1 + HOLES) * there["training"])
    assert here["scoring"] == there["scoring"]
