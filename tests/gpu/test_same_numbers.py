"""In float32 an accelerator gives the numbers of the plain forward there, and those of the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from align.data.tokens import encode_prompt
from align.forward import Scorer, batch_of, divergence, score
from align.halving import Halving
from align.models import Policy
from align.records import Completions
from align.sampling import sample
from tests.invariants import families
from tests.invariants.families import PROMPTS, TOKENIZER
from tests.invariants.test_decoding import MANY, lora_policy, tokens

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
FAMILIES = list(families.CONFIGS)


def moved(policy: Policy) -> Policy:
    return replace(policy, model=policy.model.to("cuda"), reference=policy.reference.to("cuda"))


def rollout(family: str) -> Completions:
    return sample(families.policy(family), PROMPTS, 3, families.sampling(), seed=2)


def weighted_gradient(policy: Policy, made: Completions) -> Tensor:
    policy.model.zero_grad()
    logprobs, _ = Scorer(policy.model, 0.8)(batch_of(made, TOKENIZER.pad_token_id, policy.device))
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(0)).to(logprobs.device)
    (weights * logprobs).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]).double().cpu()


@pytest.mark.parametrize("make", [families.policy, lora_policy], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_are_the_cpus(family, make):
    made, cpu, gpu = rollout(family), make(family), moved(make(family))
    ours, theirs = (
        score(Scorer(p.model, 0.8), batch_of(made, TOKENIZER.pad_token_id, p.device), Halving(3))[0].cpu()
        for p in (gpu, cpu)
    )
    assert_close(ours, theirs, rtol=0, atol=1e-4)  # an H100 and a CPU: 3.5e-5 at most
    a, b = weighted_gradient(gpu, made), weighted_gradient(cpu, made)
    assert torch.cosine_similarity(a, b, dim=0) > 0.99999
    assert (a - b).norm() / b.norm() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_transformers_generate_token_for_token(family):
    policy = moved(families.policy(family))
    ours = tokens(sample(policy, PROMPTS, 1, families.sampling(), seed=0, greedy=True))
    for prompt, row in zip(PROMPTS, ours, strict=True):
        ids = tensor([encode_prompt(TOKENIZER, prompt)], device=policy.device)
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24,
                                    eos_token_id=list(families.STOPS), pad_token_id=TOKENIZER.pad_token_id)  # fmt: skip
        assert row == out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_are_the_cpus_whatever_they_are_batched_with(family):
    """Noise comes from the CPU, so only a tie within rounding could change a token."""
    expected = sample(families.policy(family), MANY, 3, families.sampling(), seed=4)
    policy = moved(families.policy(family))
    for rows in (64, 5):
        made = sample(policy, MANY, 3, families.sampling(rows=rows), seed=4)
        assert tokens(made) == tokens(expected)
        assert_close(made.logprobs, expected.logprobs, rtol=0, atol=1e-4)


def test_merged_and_unmerged_adapters_sample_the_same():
    policy = moved(lora_policy("qwen2"))
    merged, apart = (
        sample(policy, MANY, 2, replace(families.sampling(), lora=lora), seed=3) for lora in ("merged", "unmerged")
    )
    assert tokens(merged) == tokens(apart)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_kl_is_the_cpus(family):
    made = rollout(family)
    found: list[Any] = []
    for policy in (moved(families.policy(family)), families.policy(family)):
        batch = batch_of(made, TOKENIZER.pad_token_id, policy.device)
        found.append(divergence(policy.model, policy.reference, batch, Halving(5)))
    assert_close(found[0].exact_kl.cpu(), found[1].exact_kl, rtol=1e-5, atol=1e-5)
