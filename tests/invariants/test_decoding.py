"""What the sampler's caches, its copy of the weights and its streams of noise may not change."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config

from align.attention import DECODED, FAMILIES
from align.checkpoints import load_trainable
from align.data.tokens import encode_prompt
from align.forward import Scorer, batch_of, causal_lm, score
from align.halving import Halving
from align.lora import use_fused
from align.maths.draw import noise_of
from align.models import Policy, twin
from align.packing import pack
from align.records import Completions, Prompt
from align.sampling import decoding_copy, sample
from tests.invariants import families
from tests.invariants.families import PROMPTS, TOKENIZER

CPU = torch.device("cpu")
# 12 prompts of different lengths, two of them with the same text under different names.
TEXTS = [*families.TEXTS, "Why?", "A" * 30, "Hi", "Name two.", "Go", "Tell me of rain.", "x" * 17, "And then?"]
MANY = [Prompt(id=f"p{i}", messages=({"role": "user", "content": text},), topic=text) for i, text in enumerate(TEXTS)]


def tokens(completions: Completions) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask, strict=True)]


def lora_policy(family: str, **options: Any) -> Policy:
    """A policy whose adapter is not 0, on the storage of its reference."""
    base = families.model(family).requires_grad_(False)
    reference = twin(base)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear", init_lora_weights=False, **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base, use_fused(config)).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return Policy(model, reference, TOKENIZER, families.STOPS, fingerprint="")


def unmerged(**changes: Any) -> Any:
    return replace(families.sampling(**changes), lora="unmerged")


def scored(policy: Policy, made: Completions, model: Any = None) -> Tensor:
    scorer = Scorer(policy.model if model is None else model, 1.0)
    return score(scorer, batch_of(made, TOKENIZER.pad_token_id, policy.device), Halving(3))[0]


@pytest.mark.parametrize("family", families.CONFIGS)
def test_rows_that_leave_and_prompts_that_come_in_change_no_token(family):
    policy = families.policy(family)
    together = sample(policy, MANY, 3, families.sampling(rows=64), seed=4)
    assert len(set(together.lengths.tolist())) > 5
    for rows in (3, 5, 8):
        some = sample(policy, MANY, 3, families.sampling(rows=rows), seed=4)
        assert tokens(some) == tokens(together)
        assert torch.equal(some.finished, together.finished)
        assert_close(some.logprobs, together.logprobs, rtol=0, atol=1e-4)


def test_long_completions_outgrow_the_room_that_caches_start_with():
    """80 tokens, none of them a stop, beside rows that end early."""
    policy = replace(families.policy("gemma3"), stop_ids=(TOKENIZER.eos_token_id,))
    limits = [80, 3, 50, 1] * 3
    cfg = families.sampling(max_new_tokens=80)
    together = sample(policy, MANY[:6], 2, cfg, seed=1, limits=limits)
    assert together.lengths.max() > 70
    assert_close(together.logprobs, scored(policy, together), rtol=0, atol=1e-4)
    for rows in (2, 5):
        some = sample(policy, MANY[:6], 2, replace(cfg, rows=rows), seed=1, limits=limits)
        assert tokens(some) == tokens(together)


@pytest.mark.parametrize("rows", [64, 3])
def test_limits_cut_each_completion_and_nothing_else(rows):
    policy = families.policy("llama")
    free = tokens(sample(policy, MANY, 2, families.sampling(), seed=2))
    limits = [1 + i % 7 for i in range(23)] + [999]
    made = sample(policy, MANY, 2, families.sampling(rows=rows), seed=2, limits=limits)
    assert tokens(made) == [row[:limit] for row, limit in zip(free, limits, strict=True)]
    assert made.finished.tolist() == [row[-1] in families.STOPS for row in tokens(made)]


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("family", families.CONFIGS)
def test_merged_is_unmerged_and_both_are_the_policy(family, options):
    policy = lora_policy(family, **options)
    merged = sample(policy, MANY[:4], 2, families.sampling(), seed=3)
    apart = sample(policy, MANY[:4], 2, unmerged(), seed=3)
    assert tokens(merged) == tokens(apart)
    assert_close(merged.logprobs, apart.logprobs, rtol=0, atol=1e-4)
    assert_close(merged.logprobs, scored(policy, merged), rtol=0, atol=1e-4)
    assert (scored(policy, merged) - scored(policy, merged, policy.reference)).abs().max() > 0.1, "an adapter at work"


@pytest.mark.parametrize("cfg", [families.sampling(), unmerged()], ids=["merged", "unmerged"])
def test_sampling_writes_to_no_weight(cfg):
    policy = lora_policy("qwen2")
    before = {name: x.clone() for name, x in policy.model.state_dict().items()}
    names = [name for name, _ in policy.model.named_modules()]
    trains = [p.requires_grad for p in policy.model.parameters()]
    policy.model.train()
    sample(policy, PROMPTS, 2, cfg, seed=0)
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert names == [name for name, _ in policy.model.named_modules()]
    assert trains == [p.requires_grad for p in policy.model.parameters()]
    assert policy.model.training and all(module.training for module in policy.model.modules())


@pytest.mark.parametrize("optimizer", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_the_copy_follows_an_update_and_weights_that_are_loaded(full, optimizer):
    policy = families.policy("llama") if full else lora_policy("llama")
    started = {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    first = sample(policy, PROMPTS, 3, families.sampling(), seed=0)
    adam = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=0.05, **optimizer)
    (-Scorer(policy.model, 1.0)(batch_of(first, 0, policy.device))[0].sum()).backward()
    adam.step()
    moved = sample(policy, PROMPTS, 3, families.sampling(), seed=0)
    assert tokens(moved) != tokens(first)
    assert_close(moved.logprobs, scored(policy, moved), rtol=0, atol=2e-4)
    with torch.no_grad():
        load_trainable(policy.model, started)
    again = sample(policy, PROMPTS, 3, families.sampling(), seed=0)
    assert tokens(again) == tokens(first)
    assert torch.equal(again.logprobs, first.logprobs)


def test_the_copy_follows_weights_that_were_frozen_when_it_was_made():
    policy = families.policy("llama")
    policy.model.requires_grad_(False)
    sample(policy, PROMPTS, 1, families.sampling(), seed=0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.9)
    made = sample(policy, PROMPTS, 2, families.sampling(), seed=0)
    assert_close(made.logprobs, scored(policy, made), rtol=0, atol=1e-4)


def test_the_copy_owns_no_parameter_and_merges_only_when_something_was_written():
    policy = lora_policy("qwen2")
    for merge in (True, False):
        made = decoding_copy(policy.model, merge)
        own = {t.untyped_storage().data_ptr() for t in causal_lm(policy.model).state_dict().values()}
        assert {p.untyped_storage().data_ptr() for p in made.lm.parameters()} <= own
        held = [product.tensors for product in made.products]
        assert decoding_copy(policy.model, merge) is made
        assert all(a is b.tensors for a, b in zip(held, made.products, strict=True))


def test_sampling_from_the_reference_leaves_the_policys_copy_alone():
    policy = lora_policy("qwen3")
    first = sample(policy, PROMPTS, 2, families.sampling(), seed=6)
    other = sample(policy, PROMPTS, 2, families.sampling(), seed=6, model=policy.reference)
    again = sample(policy, PROMPTS, 2, families.sampling(), seed=6)
    assert tokens(first) == tokens(again) != tokens(other)
    assert torch.equal(first.logprobs, again.logprobs)
    assert_close(other.logprobs, scored(policy, other, policy.reference), rtol=0, atol=1e-4)


def test_a_copy_goes_when_its_model_goes():
    policy = families.policy("llama")
    sample(policy, PROMPTS[:1], 1, families.sampling(max_new_tokens=2), seed=0)
    gone = weakref.ref(policy.model), weakref.ref(decoding_copy(policy.model, merge=True))
    assert gone[1]() is not None
    del policy
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


def test_equal_prompts_under_different_names_have_different_streams():
    policy = families.policy("llama")
    assert MANY[0].text == MANY[6].text
    made = tokens(sample(policy, [MANY[0], MANY[6]], 8, families.sampling(), seed=0))
    long = [tuple(row) for row in made if len(row) >= 4]
    assert len(set(long)) == len(long) > 5
    assert made[8:] == tokens(sample(policy, [MANY[6]], 8, families.sampling(), seed=0))


def test_each_seed_prompt_and_sample_has_a_stream_whose_beginning_does_not_depend_on_its_length():
    stream = noise_of(0, "p", 1, 5, 40)
    assert torch.equal(noise_of(0, "p", 1, 3, 40), stream[:3])
    others = [noise_of(1, "p", 1, 5, 40), noise_of(0, "q", 1, 5, 40), noise_of(0, "p", 0, 5, 40)]
    for other in (*others, stream.roll(1, 0)):
        assert not torch.isclose(other, stream).all(-1).any()


def test_a_model_whose_attention_is_of_another_kind_is_refused():
    config = Gemma2Config(**families.COMMON, num_hidden_layers=2, attn_logit_softcapping=1.0)
    model = AutoModelForCausalLM.from_config(config).eval()
    policy = Policy(model, copy.deepcopy(model), TOKENIZER, families.STOPS, fingerprint="")
    with pytest.raises(Exception, match="gemma2"):
        sample(policy, PROMPTS, 1, families.sampling(), seed=0)


SMALL = dict(
    vocab_size=families.V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
    pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None, initializer_range=0.4,
)  # fmt: skip
OWN_NAMES = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32, init_std=0.4),
    "gpt_neox": dict(intermediate_size=48),
    "qwen3_moe": dict(moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, head_dim=8),
}


@pytest.mark.parametrize("family", sorted(set(DECODED) - set(FAMILIES)))
def test_other_families_decode_as_transformers_does(family):
    shape = dict(intermediate_size=48, num_key_value_heads=2) if family not in ("gpt2", "opt", "gpt_neox") else {}
    config = AutoConfig.for_model(family, **(SMALL | shape | OWN_NAMES.get(family, {})))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    policy = Policy(model, model, TOKENIZER, families.STOPS, fingerprint="")
    ours = sample(policy, PROMPTS, 1, families.sampling(), seed=0, greedy=True)
    for prompt, ids, mask in zip(PROMPTS, ours.ids, ours.mask, strict=True):
        start = torch.tensor([encode_prompt(TOKENIZER, prompt)])
        out = model.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=24,
                             eos_token_id=list(families.STOPS), pad_token_id=TOKENIZER.pad_token_id)  # fmt: skip
        assert ids[mask].tolist() == out[0, start.shape[1] :].tolist()


@pytest.mark.parametrize("family", list(families.CONFIGS))
def test_nothing_of_a_forward_stays_in_the_copy(family):
    policy = lora_policy(family)
    kept: list[Any] = []
    layout = pack([tuple(encode_prompt(TOKENIZER, prompt)) for prompt in PROMPTS], [(0,)] * len(PROMPTS), CPU)
    with torch.no_grad():
        copied = decoding_copy(policy.model, merge=True)
        layout.hidden(copied.lm.get_decoder(), use_cache=False, keep=kept)
    assert any(len(product.layers) > 1 for product in copied.products)
    assert all(product.whole is None for product in copied.products)
    assert kept and all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for pair in kept for t in pair)
