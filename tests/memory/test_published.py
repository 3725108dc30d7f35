"""Each calculator against the value that its source prints, or that follows from it by hand."""

from __future__ import annotations

import pytest

from align.maths.best_of_n import kl_bound, weights
from align.memory import costs, odds, states
from align.memory.dimensions import load

GB = 1e9


def method(name: str) -> states.Method:
    return next(m for m in states.METHODS if name in m.names.replace(",", "").split())


@pytest.mark.parametrize(("parameters", "gpus", "expected"), [
    (7.5e9, 64, (120, 31.4, 16.6, 1.9)),  # ZeRO, arXiv:1910.02054, figure 1
    (7e9, 8, (112, 38.5, 26.25, 14)),
])  # fmt: skip
def test_zero_leaves_what_its_paper_says(parameters, gpus, expected):
    found = [states.zero(parameters, gpus, stage) / GB for stage in states.STAGES]
    assert found == pytest.approx(list(expected), abs=0.05)


@pytest.mark.parametrize(("gpus", "expected"), [(8, 145.4), (16, 72.7), (64, 18.2)])
def test_qwen_72b_does_not_fit_8_gpus_of_80_gb_even_at_stage_3(gpus, expected):
    assert states.zero(load("qwen72b").parameters, gpus, 3) / GB == pytest.approx(expected, abs=0.05)


def test_stage_3_sends_half_as_much_again():
    assert [states.communication(1.0, stage) for stage in states.STAGES] == [2, 2, 2, 3]


@pytest.mark.parametrize(("name", "each", "seven", "half"), [
    ("sft", 16, 112, 7.9), ("simpo", 16, 112, 7.9), ("orpo", 16, 112, 7.9),
    ("dpo", 18, 126, 8.9), ("kto", 18, 126, 8.9),
    ("grpo", 20, 140, 9.9), ("rloo", 20, 140, 9.9), ("ppo", 36, 252, 17.8),
])  # fmt: skip
def test_copies_of_full_fine_tuning(name, each, seven, half):
    assert method(name).bytes_each == each
    assert method(name).bytes_each * 7e9 / GB == seven
    assert method(name).bytes_each * load("qwen0.5b").parameters / GB == pytest.approx(half, abs=0.05)


@pytest.mark.parametrize(("name", "adapter", "share"), [
    ("smollm2-135m", 4_884_480, 3.63), ("qwen0.5b", 8_798_208, 1.78), ("llama2-7b", 39_976_960, 0.59),
])  # fmt: skip
def test_adapters_of_rank_16_on_all_linear_layers(name, adapter, share):
    model = load(name)
    assert model.adapter(16) == adapter
    assert 100 * adapter / model.parameters == pytest.approx(share, abs=0.005)


def test_lora_of_qwen_half_a_billion_takes_a_seventh():
    model = load("qwen0.5b")
    assert states.lora_states(model.parameters, model.adapter(16)) / GB == pytest.approx(1.13, abs=0.005)
    assert states.TRAINED * model.parameters / GB == pytest.approx(7.90, abs=0.005)


@pytest.mark.parametrize(("name", "expected"), [
    ("opt-13b", 819_200), ("llama2-7b", 524_288), ("llama3.1-70b", 327_680), ("mistral-7b", 131_072),
    ("qwen0.5b", 12_288), ("smollm2-135m", 23_040),
])  # fmt: skip
def test_a_cached_token(name, expected):
    assert load(name).cache(2) == expected


def test_opt_13b_caches_800_kib_a_token_and_llama_2_7b_two_gib_a_context():
    assert load("opt-13b").cache(2) == 800 * 1024
    assert load("llama2-7b").cache(2) * 4096 == 2 * 1024**3
    assert load("llama3.1-70b").cache(2) * 4096 == 1_342_177_280


@pytest.mark.parametrize(("name", "all_heads", "times"), [
    ("qwen0.5b", 86_016, 7), ("smollm2-135m", 69_120, 3), ("llama3.1-70b", 8 * 327_680, 8),
])  # fmt: skip
def test_grouped_queries_save_as_many_times_as_heads_share(name, all_heads, times):
    model = load(name)
    assert model.cache(2, model.heads) == all_heads == times * model.cache(2)


def test_one_head_for_all_queries():
    assert load("smollm2-135m").cache(2, 1) == 7_680


def test_sequences_that_fit_beside_the_weights():
    assert costs.most_sequences(vram=80e9, weights=14e9, token=524_288, length=4096) == 30  # 66e9 / 2 GiB = 30.7
    assert costs.most_sequences(vram=10e9, weights=14e9, token=524_288, length=4096) == 0


def test_activations_by_hand():
    """GPT-3's dimensions, s = 2048: 34 + 5 a s / h = 34 + 5 x 96 x 2048 / 12288 = 114 bytes for each of s b h L."""
    gpt3 = load("opt-13b").__class__(**{**vars(load("opt-13b")), "hidden": 12288, "heads": 96, "layers": 96})
    assert costs.activations(gpt3, 1, 2048, flash=False) == 2048 * 12288 * 96 * 114
    assert costs.activations(gpt3, 1, 2048, flash=True) == 2048 * 12288 * 96 * 34
    assert costs.activations(gpt3, 3, 2048, flash=False) == 3 * costs.activations(gpt3, 1, 2048, flash=False)


@pytest.mark.parametrize(("name", "batch", "length", "expected"), [
    ("qwen0.5b", 8, 512, 2.49), ("smollm2-135m", 32, 128, 0.81),
])  # fmt: skip
def test_logits_dominate_small_models(name, batch, length, expected):
    assert costs.logits(load(name), batch, length) / GB == pytest.approx(expected, abs=0.006)


def test_lora_takes_two_thirds_of_the_operations_of_full_training():
    assert costs.OPERATIONS["training, LoRA"] / costs.OPERATIONS["training, all weights"] == pytest.approx(
        0.67, abs=0.01
    )
    assert costs.OPERATIONS["forward, or a token generated"] == 2


def test_silent_groups():
    assert odds.silent_groups(0.5, 2) == 0.5  # both right or both wrong
    assert odds.silent_groups(0.2, 8) == pytest.approx(0.168, abs=0.0005)  # conf/algo/grpo.yaml: 17 %
    assert odds.silent_groups(0.0, 8) == odds.silent_groups(1.0, 8) == 1


def test_credit_of_the_last_token():
    assert odds.credit(1.0, 0.95, 1) == 1
    assert odds.credit(1.0, 0.5, 3) == 0.25
    assert odds.credit(0.9, 0.5, 2) == pytest.approx(0.45)
    assert odds.credit(1.0, 1.0, 1000) == 1


@pytest.mark.parametrize(("n", "kl"), [(1, 0), (2, 0.193), (4, 0.636), (16, 1.835), (64, 3.175), (1000, 5.909),
                                       (60000, 10.002)])  # fmt: skip
def test_kl_of_best_of_n(n, kl):
    assert kl_bound(n) == pytest.approx(kl, abs=0.0005)


def test_the_best_of_two_of_three_by_hand():
    """Of the pairs {1,2}, {1,3}, {2,3} the best is 2 once and 3 twice."""
    assert weights(2, 3) == pytest.approx([0, 1 / 3, 2 / 3])
    assert weights(1, 3) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert weights(3, 3) == pytest.approx([0, 0, 1])


def test_standard_errors_that_the_studies_plan_with():
    assert odds.standard_error(25, 200, 1) == pytest.approx(2.5)  # tokens
    assert odds.standard_error(25, 200, 2) == pytest.approx(1.8, abs=0.05)
    assert odds.standard_error(1, 200, 1) == pytest.approx(0.10)  # SD of gold
    assert odds.standard_error(1, 200, 2) == pytest.approx(0.07, abs=0.001)


def test_a_difference_of_2_8_standard_errors_is_found_in_four_of_five_experiments():
    assert odds.detectable(1.0) == pytest.approx(2.80, abs=0.005)
    assert odds.power(odds.detectable(1.0), 1.0) == pytest.approx(0.8, abs=1e-5)
    assert odds.power(0.0, 1.0) == pytest.approx(0.05)


@pytest.mark.parametrize(("flips", "expected"), [(0.0, 0.787), (0.1, 0.729), (0.25, 0.643), (0.4, 0.557)])
def test_labels_agree_with_gold(flips, expected):
    assert odds.labels(1.5, 0.0, flips)[0] == pytest.approx(expected, abs=0.001)


def test_two_raters_agree():
    assert odds.labels(1.5, 0.0, 0.0)[1] == pytest.approx(0.708, abs=0.001)


@pytest.mark.parametrize(("bias", "expected"), [(0.0, 0.5), (0.25, 0.541), (0.5, 0.581), (1.0, 0.653), (1.5, 0.710)])
def test_a_length_bias_chooses_the_longer(bias, expected):
    assert odds.labels(1.5, bias, 0.0)[2] == pytest.approx(expected, abs=0.0015)
