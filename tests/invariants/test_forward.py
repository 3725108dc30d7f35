"""The scoring pass against the plain one: padded rows through the model's own forward, all logits kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from torch.testing import assert_close

from align import forward
from align.forward import Batch, Scorer, batch_of, divergence, micro_batches, score
from align.halving import Halving
from align.records import Completions
from align.sampling import sample
from tests.invariants import families
from tests.invariants.families import PROMPTS, TOKENIZER

FAMILIES = list(families.CONFIGS)
TEMPERATURE = 0.8
COSINE = 0.99999


@pytest.fixture(params=[256, 3], ids=["one chunk", "chunks of 3"])
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(forward, "CHUNK", request.param)
    return request.param


def rollout(family: str) -> tuple[Any, Completions, Batch]:
    policy = families.policy(family)
    made = sample(policy, PROMPTS, 3, families.sampling(), seed=2)
    assert not made.mask.all() and 0 < made.finished.sum() < 12
    return policy, made, batch_of(made, TOKENIZER.pad_token_id, policy.device)


def plain_distributions(model: Any, made: Completions, temperature: float) -> Tensor:
    """Log-probabilities of every token at every completion position, NaN elsewhere. -> [B, T, V]"""
    rows = [[*prompt, *ids[mask].tolist()]
            for prompt, ids, mask in zip(made.prompt_ids, made.ids, made.mask, strict=True)]  # fmt: skip
    longest = max(map(len, rows))
    ids = torch.tensor([row + [TOKENIZER.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    log_p = (families.full_logits(model, ids, mask) / temperature).log_softmax(-1)
    out = torch.full((*made.mask.shape, families.V), torch.nan)
    for i, prompt in enumerate(made.prompt_ids):
        for t in range(int(made.lengths[i])):
            out[i, t] = log_p[i, len(prompt) + t - 1]  # the position before a token predicts it
    return out


def plain(model: Any, made: Completions, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies [B, T], 0 where there is no token."""
    log_p = plain_distributions(model, made, temperature)
    logprobs = log_p.gather(-1, made.ids.unsqueeze(-1)).squeeze(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    return torch.where(made.mask, logprobs, 0), torch.where(made.mask, entropies, 0)


def gradient(model: Any, logprobs: Tensor) -> Tensor:
    """Of a sum in which every token has its own weight."""
    model.zero_grad()
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(0))
    (weights * logprobs).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).double()


def assert_same_gradient(ours: Tensor, theirs: Tensor, label: str) -> None:
    cosine = torch.cosine_similarity(ours, theirs, dim=0).item()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"{label}: gradient error {error:.1e}, 1 - cosine {1 - cosine:.1e}")
    assert cosine > COSINE
    assert error < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_entropies_and_gradients_are_the_plain_forwards(family, chunk):
    policy, made, batch = rollout(family)
    scorer = Scorer(policy.model, TEMPERATURE)
    logprobs, entropies = scorer(batch)
    expected, expected_entropies = plain(policy.model, made, TEMPERATURE)
    print(f"{family}: {(logprobs - expected).abs().max().item():.1e}")
    assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    assert_close(entropies, expected_entropies, rtol=1e-5, atol=1e-5)
    assert not entropies.requires_grad
    assert_same_gradient(gradient(policy.model, scorer(batch)[0]), gradient(policy.model, expected), family)


def test_a_lora_policys_gradient_is_the_plain_forwards(chunk):
    policy, made, batch = rollout("llama")
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(policy.model, config)
    ours, theirs = Scorer(model, TEMPERATURE)(batch)[0], plain(model, made, TEMPERATURE)[0]
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_same_gradient(gradient(model, ours), gradient(model, theirs), "lora")


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_kl_is_the_sum_over_the_whole_vocabulary(family, chunk):
    policy, made, batch = rollout(family)
    found = divergence(policy.model, policy.reference, batch, Halving(5))
    with torch.no_grad():
        log_p, log_q = (plain_distributions(m, made, 1.0).double() for m in (policy.model, policy.reference))
    for i, length in enumerate(made.lengths.tolist()):
        for t in range(length):
            p, q = log_p[i, t].tolist(), log_q[i, t].tolist()
            kl = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            assert found.exact_kl[i, t].item() == pytest.approx(kl, rel=1e-5, abs=1e-5)
    assert found.exact_kl[made.mask].min() > 0
    assert (found.exact_kl[~made.mask] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_roles_are_scored_at_temperature_one(family, chunk):
    policy, made, batch = rollout(family)
    found = divergence(policy.model, policy.reference, batch, Halving(5))
    with torch.no_grad():
        (p, entropy), (q, _) = plain(policy.model, made, 1.0), plain(policy.reference, made, 1.0)
    for got, expected in ((found.logprobs, p), (found.reference_logprobs, q), (found.entropy, entropy)):
        assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_is_its_reference_has_no_kl_to_the_last_bit(family, chunk):
    policy, _, batch = rollout(family)
    found = divergence(policy.model, families.model(family), batch, Halving(5))
    assert torch.equal(found.logprobs, found.reference_logprobs)
    assert found.exact_kl.abs().max() == 0


def test_the_mean_of_k1_is_the_exact_kl():
    """4096 one-token completions: within four standard errors of the sum over the vocabulary."""
    policy = families.policy("llama")
    made = sample(policy, PROMPTS[:1], 4096, families.sampling(max_new_tokens=1, rows=4096), seed=0)
    found = divergence(policy.model, policy.reference, batch_of(made, 0, policy.device), Halving(4096))
    k1 = (found.logprobs - found.reference_logprobs)[:, 0]
    assert abs(k1.mean() - found.exact_kl[0, 0]) < 4 * k1.std() / 64
    assert k1.std() / 64 < 0.1 * k1.mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_change_nothing(family, monkeypatch):
    policy, _, batch = rollout(family)
    results = []
    for size in (256, 3):
        monkeypatch.setattr(forward, "CHUNK", size)
        logprobs, entropies = Scorer(policy.model, TEMPERATURE)(batch)
        results.append((logprobs, entropies, gradient(policy.model, logprobs)))
    for whole, pieces in zip(*results, strict=True):
        assert_close(pieces, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_scoring_in_pieces_changes_nothing(rows, chunk):
    policy, made, batch = rollout("gemma3")
    scorer = Scorer(policy.model, TEMPERATURE)
    pieces = micro_batches(batch, rows)
    assert sorted(torch.cat(pieces).tolist()) == list(range(12))
    with torch.no_grad():
        whole = scorer(batch)
    for got, expected in zip(score(scorer, batch, Halving(rows)), whole, strict=True):
        assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter():
    policy, _, batch = rollout("gemma3")
    dirty = Batch(torch.where(batch.mask, batch.ids, 77), batch.mask, batch.starts, batch.completion_mask)
    scorer = Scorer(policy.model, TEMPERATURE)
    with torch.no_grad():
        assert torch.equal(scorer(batch)[0], scorer(dirty)[0])
