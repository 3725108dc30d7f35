"""The machine's limit, worked by hand on a model small enough for it."""

from __future__ import annotations

import pytest

from align.bench.limit import Group, Load, Machine, Shape, limit_parts, limit_seconds

# One layer: q 2x2, k and v 2x2, o 2x2, gate, up and down 2x3: 16 + 18 = 34 weights. LM head 5 x 2 = 10.
# Adapters of rank 1: four of 2 + 2, three of 2 + 3: 31. Attention: 4 * 1 * 1 * 2 = 8 per position seen.
SHAPE = Shape(layers=1, hidden=2, intermediate=3, heads=1, kv_heads=1, head_dim=2, vocab=5, rank=1, weight_bytes=2)
COMPUTE = Machine(flops=1.0, bytes=float("inf"))  # a second for each operation, memory for nothing
MEMORY = Machine(flops=float("inf"), bytes=1.0)  # a second for each byte


def load(*groups: Group, sampled: bool = False, reference: bool = False, head: bool = True) -> Load:
    return Load(groups, sampled, reference, head)


def test_weights_of_a_small_model():
    assert (SHAPE.block_weights, SHAPE.head_weights, SHAPE.adapter_weights, SHAPE.attention_flops) == (34, 10, 31, 8)
    assert SHAPE.cache_bytes == 8  # a key and a value of two numbers, two bytes each


def test_smollm2_has_the_weights_it_is_known_for():
    shape = Shape(30, 576, 1536, 9, 3, 64, 49152, 16, 2)
    norms = (2 * 30 + 1) * 576
    assert shape.block_weights + shape.head_weights + norms == 134_515_008
    assert shape.adapter_weights == 4_884_480  # what PEFT prints as trainable


def test_the_last_token_is_not_fed_and_the_prompt_is_fed_once():
    work = load(Group(3, (2, 1)))
    assert work.fed == 3 + 1 + 0
    assert work.seen == (1 + 2 + 3) + 4  # the fed completion token sees the prompt and itself
    assert work.completion_tokens == 3


def test_a_reward_model_reads_the_last_token():
    assert load(Group(3, (2, 1)), head=False).fed == 3 + 2 + 1


def test_a_training_step_by_hand():
    parts = limit_parts(load(Group(3, (2, 1))), SHAPE, COMPUTE)
    forward = 2 * 34 * 4 + 8 * 10 + 2 * 10 * 3  # blocks, attention, head at 3 completion tokens
    assert parts["forward"] == forward + 2 * 31 * 4
    assert parts["backward"] == forward + 8 * 10 + 4 * 31 * 4  # attention twice, both gradients of the adapters
    assert parts["sample"] == parts["reference"] == parts["optimizer"] == 0


def test_a_reference_costs_one_forward_without_adapters():
    parts = limit_parts(load(Group(3, (2, 1)), reference=True), SHAPE, COMPUTE)
    assert parts["reference"] == parts["forward"] - 2 * 31 * 4


def test_without_a_vocabulary_the_head_costs_nothing():
    parts = limit_parts(load(Group(3, (2,)), head=False), SHAPE, COMPUTE)
    assert parts["forward"] == (2 * 34 + 2 * 31) * 5 + 8 * (1 + 2 + 3 + 4 + 5)


def test_sampling_by_hand():
    """Two rows of 3 and 2 tokens: prefill gives the first, then passes of two rows and of one."""
    parts = limit_parts(load(Group(4, (3, 2)), sampled=True), SHAPE, COMPUTE)
    prefill = 2 * 34 * 4 + 2 * 10 + 8 * (1 + 2 + 3 + 4)
    second = 2 * (34 + 10) * 2 + 8 * 2 * 5
    third = 2 * (34 + 10) * 1 + 8 * 1 * 6
    assert parts["sample"] == prefill + second + third


def test_each_decoding_pass_reads_all_weights_and_the_cache_with_the_prompt_once():
    parts = limit_parts(load(Group(4, (3, 2)), sampled=True), SHAPE, MEMORY)
    weights = 2 * (34 + 10)
    assert parts["sample"] == 3 * weights + 8 * (4 + 2 * 1) + 8 * (4 + 2)
    assert parts["forward"] == parts["backward"] == weights
    assert parts["optimizer"] == 28 * 31


def test_the_longer_of_computing_and_reading_counts():
    machine = Machine(flops=10.0, bytes=4.0)
    assert machine.seconds(100, 20) == 10 and machine.seconds(100, 80) == 20


def test_phases_add_up():
    work = load(Group(4, (3, 2)), sampled=True, reference=True)
    assert limit_seconds(work, SHAPE, COMPUTE) == pytest.approx(sum(limit_parts(work, SHAPE, COMPUTE).values()))


def test_tokens_are_those_generated_and_those_in_the_loss():
    assert load(Group(4, (3, 2)), sampled=True).worked_tokens == 5 + 5
    assert load(Group(4, (3, 2))).worked_tokens == 5
    assert load(Group(4, (3, 2)), head=False).worked_tokens == 7 + 6
