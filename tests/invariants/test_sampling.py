"""The sampler draws from the model's own distribution, whatever stands beside a completion in the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, tensor
from torch.testing import assert_close

from align.data.tokens import encode_prompt
from align.forward import Scorer, batch_of, score
from align.halving import Halving
from align.records import Completions
from align.sampling import sample
from tests.invariants import families
from tests.invariants.families import PROMPTS, TOKENIZER

FAMILIES = list(families.CONFIGS)
P_VALUE = 1e-4


def tokens(completions: Completions) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_transformers_generate_token_for_token(family):
    policy = families.policy(family)
    ours = sample(policy, PROMPTS, 1, families.sampling(), seed=0, greedy=True)
    theirs = []
    for prompt in PROMPTS:  # one at a time: no padding, nothing beside it
        ids = tensor([encode_prompt(TOKENIZER, prompt)])
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24,
                                    eos_token_id=list(families.STOPS), pad_token_id=TOKENIZER.pad_token_id)  # fmt: skip
        theirs.append(out[0, ids.shape[1] :].tolist())
    assert tokens(ours) == theirs
    assert ours.finished.tolist() == [row[-1] in families.STOPS for row in theirs]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_does_not_depend_on_what_it_is_batched_with(family):
    policy = families.policy(family)
    together = sample(policy, PROMPTS, 3, families.sampling(), seed=5)
    assert len(set(together.lengths.tolist())) > 3, "rows should leave the batch at different times"
    for rows in (1, 5):
        apart = sample(policy, PROMPTS, 3, families.sampling(rows=rows), seed=5)
        assert tokens(apart) == tokens(together)
        assert_close(apart.logprobs, together.logprobs, rtol=0, atol=1e-4)
    alone = sample(policy, PROMPTS[2:3], 2, families.sampling(), seed=5)
    assert tokens(alone) == tokens(together)[6:8]


def test_gemmas_window_is_at_work_here():
    policy = families.policy("gemma3")
    lengths = [len(encode_prompt(TOKENIZER, prompt)) for prompt in PROMPTS]
    assert min(lengths) < families.WINDOW < max(lengths)
    seen = tokens(sample(policy, PROMPTS, 1, families.sampling(), seed=0, greedy=True))
    wide = families.model("gemma3", sliding_window=128)
    assert tokens(sample(policy, PROMPTS, 1, families.sampling(), seed=0, greedy=True, model=wide)) != seen


def test_samples_of_a_prompt_differ_and_so_do_seeds():
    policy = families.policy("llama")
    first, again, other = (tokens(sample(policy, PROMPTS, 4, families.sampling(), seed=s)) for s in (0, 0, 1))
    assert first == again
    long = [tuple(row) for row in first + other if len(row) >= 4]  # two short ones can be equal by chance
    assert len(set(long)) == len(long) > 20


def test_completions_end_with_their_first_stop_token_or_at_the_limit():
    made = sample(families.policy("llama"), PROMPTS, 16, families.sampling(max_new_tokens=8), seed=0)
    assert 0.1 < made.finished.float().mean() < 0.9
    for row, finished in zip(tokens(made), made.finished.tolist(), strict=True):
        stops = [token in families.STOPS for token in row]
        assert not any(stops[:-1])
        assert stops[-1] is finished
        assert finished or len(row) == 8


def test_a_stop_token_in_the_last_position_counts_as_finished():
    made = sample(families.policy("llama"), PROMPTS, 64, families.sampling(max_new_tokens=1), seed=0)
    assert made.finished.tolist() == [row[0] in families.STOPS for row in tokens(made)]
    assert made.finished.any() and not made.finished.all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_samplers_logprobs_are_the_scorers(family, temperature):
    policy = families.policy(family)
    made = sample(policy, PROMPTS, 4, families.sampling(temperature), seed=3)
    batch = batch_of(made, TOKENIZER.pad_token_id, policy.device)
    logprobs, _ = score(Scorer(policy.model, temperature), batch, Halving(3))
    assert_close(made.logprobs, logprobs, rtol=0, atol=1e-4)


def agrees(counts: Tensor, probs: Tensor) -> float:
    """p-value of the counts under the probabilities; tokens expected fewer than five times share one cell."""
    total = counts.sum()
    rare = probs * total < 5
    observed = torch.cat([counts[~rare], counts[rare].sum().view(1)]).double()
    expected = torch.cat([probs[~rare], probs[rare].sum().view(1)]).double() * total
    assert len(observed) > 10
    return float(chisquare(observed.numpy(), (expected * total / expected.sum()).numpy()).pvalue)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_frequencies_are_the_exact_probabilities(family, temperature):
    """Of the first token, and of the second where the first is the most frequent one: prefill and a cached step."""
    policy = families.policy(family)
    prompt = PROMPTS[1]
    cfg = families.sampling(temperature, max_new_tokens=2, rows=2048)
    made = tokens(sample(policy, [prompt], 8192, cfg, seed=11))

    first = torch.bincount(tensor([row[0] for row in made]), minlength=families.V)
    ids = encode_prompt(TOKENIZER, prompt)
    with torch.no_grad():
        probs = (families.full_logits(policy.model, tensor([ids]))[0, -1] / temperature).softmax(-1)
        going = first.clone()
        going[list(families.STOPS)] = 0
        token = int(going.argmax())
        after = (families.full_logits(policy.model, tensor([[*ids, token]]))[0, -1] / temperature).softmax(-1)
    second = torch.bincount(tensor([row[1] for row in made if row[0] == token]), minlength=families.V)
    p_values = agrees(first, probs), agrees(second, after)
    print(f"{family} at {temperature}: p = {p_values[0]:.3f} and {p_values[1]:.3f} ({int(second.sum())} samples)")
    assert min(p_values) > P_VALUE


def test_a_wrong_temperature_would_be_noticed():
    policy = families.policy("llama")
    cfg = families.sampling(0.9, max_new_tokens=1, rows=2048)
    made = tokens(sample(policy, PROMPTS[1:2], 8192, cfg, seed=11))
    counts = torch.bincount(tensor([row[0] for row in made]), minlength=families.V)
    with torch.no_grad():
        probs = families.full_logits(policy.model, tensor([encode_prompt(TOKENIZER, PROMPTS[1])]))[0, -1].softmax(-1)
    assert agrees(counts, probs) < P_VALUE


@pytest.mark.parametrize(("cut", "kept"), [({"top_k": 2}, 2), ({"top_p": 1e-6}, 1), ({"min_p": 0.999}, 1)], ids=str)
def test_what_is_cut_off_is_never_sampled_and_the_samplers_logprobs_say_what_is_left(cut, kept):
    policy = families.policy("llama")
    made = sample(policy, PROMPTS[:1], 64, replace(families.sampling(max_new_tokens=1), **cut), seed=0)
    found, logprobs = made.ids[:, 0], made.logprobs[:, 0]
    with torch.no_grad():
        logits = families.full_logits(policy.model, tensor([encode_prompt(TOKENIZER, PROMPTS[0])]))[0, -1]
    likely = logits.topk(kept)
    assert set(found.tolist()) == set(likely.indices.tolist())
    exact = dict(zip(likely.indices.tolist(), likely.values.log_softmax(-1).tolist(), strict=True))
    assert_close(logprobs, tensor([exact[token] for token in found.tolist()]), rtol=0, atol=1e-5)
