"""The ruler on a policy whose every answer can be written down: what it reads is what is true."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from align.data.tokens import encode_prompt
from align.forward import Batch, Sharpening, divergence
from align.halving import Halving
from align.maths.draw import warp
from align.maths.kl import k1, k3
from align.maths.masked import masked_sum
from align.measures import kl_fields, kl_metrics, length_metrics, sample_rows, text_fields, text_metrics
from align.models import Policy
from align.probe import Probe
from align.records import Completions, PreferencePair
from align.rewards import Rewards
from align.sampling import sample
from tests.invariants import families
from tests.invariants.families import PROMPTS, STOPS, TOKENIZER, V

PROMPT = PROMPTS[1]
TOKENS = 2  # an answer is a stop token, or one of 244 others and then any of 261: 63,701 answers
N = 20_000


def nearby() -> Policy:
    """A policy some tenths of a nat from its reference."""
    policy = families.policy("llama")
    reference = copy.deepcopy(policy.model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return Policy(policy.model, reference, TOKENIZER, STOPS, fingerprint="")


def distributions(model: Any, temperature: float = 1.0, top_p: float | None = None) -> tuple[Tensor, Tensor]:
    """log p of the first token [V], and of the second after each first one [V, V], float64, by the plain forward."""
    prompt = tensor(encode_prompt(TOKENIZER, PROMPT))
    ids = torch.cat([prompt.expand(V, -1), torch.arange(V).unsqueeze(-1)], dim=-1)
    with torch.no_grad():
        logits = families.full_logits(model, ids).double() / temperature
    if top_p is not None:
        cut = warp(logits.flatten(0, 1), top_p=top_p).isinf().view(logits.shape)
        logits = logits.masked_fill(cut, -math.inf)
    return logits[0, len(prompt) - 1].log_softmax(-1), logits[:, len(prompt)].log_softmax(-1)


def true_kl(policy: Policy, temperature: float = 1.0, top_p: float | None = None) -> tuple[float, float]:
    """KL of whole answers, sum over all of them of p(y) log p(y) / q(y), and their mean length."""
    (p1, p2), (q1, q2) = distributions(policy.model, temperature, top_p), distributions(policy.reference)
    q1, q2 = (q.masked_fill(p.isinf(), -math.inf) for p, q in ((p1, q1), (p2, q2)))
    goes_on = torch.ones(V, dtype=torch.bool)
    goes_on[list(STOPS)] = False
    first, second = ((p.exp() * (p - q)).nan_to_num(0.0) for p, q in ((p1, q1), (p2, q2)))  # of what is cut off: 0
    second = second.sum(-1)
    p_on = p1.exp()[goes_on]
    return float(first.sum() + (p_on * second[goes_on]).sum()), float(1 + p_on.sum())


def every_first_token(policy: Policy) -> tuple[Batch, Tensor]:
    """One answer for each first token (the second is any: exact KL sums over it), and how likely the first is."""
    prompt = encode_prompt(TOKENIZER, PROMPT)
    ids = tensor([[*prompt, first, 7] for first in range(V)])
    mask = torch.ones(V, TOKENS, dtype=torch.bool)
    mask[list(STOPS), 1] = False
    whole = torch.cat([torch.ones(V, len(prompt), dtype=torch.bool), mask], dim=-1)
    return Batch(ids, whole, torch.full((V,), len(prompt)), mask), distributions(policy.model)[0].exp()


def test_exact_kl_is_the_kl_of_whole_answers_to_1e_6():
    policy = nearby()
    batch, p = every_first_token(policy)
    found = divergence(policy.model, policy.reference, batch, Halving(64))
    expected = float((p * masked_sum(found.exact_kl, batch.completion_mask, -1).double()).sum())
    truth, _ = true_kl(policy)
    assert 0.05 < truth < 1
    assert expected == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_estimates_are_within_their_intervals_of_the_truth(temperature):
    policy = nearby()
    answers = sample(policy, [PROMPT], N, families.sampling(temperature, TOKENS, rows=2000), seed=1)
    batch = Batch(*_rows(answers))
    found = divergence(policy.model, policy.reference, batch, Halving(500), Sharpening(temperature))
    metrics, mask = kl_metrics(found, batch.completion_mask), batch.completion_mask
    truth, length = true_kl(policy, temperature)
    one = masked_sum(k1(found.logprobs, found.reference_logprobs), mask, -1)
    exact = masked_sum(found.exact_kl, mask, -1)
    assert abs(metrics["kl/k1"] - truth) < 1.96 * float(one.std()) / math.sqrt(N)
    assert abs(metrics["kl/exact"] - truth) < 1.96 * float(exact.std()) / math.sqrt(N)
    assert float(exact.std()) < float(one.std()), "summing over the vocabulary leaves less noise"
    # k3 is per token: a ratio of means, with the delta method's error
    three, tokens = masked_sum(k3(found.logprobs, found.reference_logprobs), mask, -1), mask.sum(-1).float()
    error = float((three - metrics["kl/k3"] * tokens).std()) / float(tokens.mean()) / math.sqrt(N)
    assert abs(metrics["kl/k3"] - truth / length) < 1.96 * error
    fields = kl_fields(found, mask)
    assert float(fields["kl"].mean()) == metrics["kl/k1"] and float(fields["kl_exact"].mean()) == metrics["kl/exact"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_nucleus_is_measured_as_it_is_sampled(temperature):
    """Sampler and ruler cut the same, and the KL is that of the distribution left; k3 misses what is cut off."""
    policy, sampled = nearby(), Sharpening(temperature, 0.8)
    cfg = replace(families.sampling(temperature, TOKENS, rows=2000), top_p=0.8)
    answers = sample(policy, [PROMPT], N, cfg, seed=1)
    batch = Batch(*_rows(answers))
    found, mask = divergence(policy.model, policy.reference, batch, Halving(500), sampled), batch.completion_mask
    assert torch.allclose(found.logprobs, answers.logprobs, rtol=0, atol=1e-4)
    truth, _ = true_kl(policy, *sampled)
    metrics = kl_metrics(found, mask)
    assert truth > 2 * true_kl(policy, temperature)[0] > 0.1
    for key, values in (("kl/k1", k1(found.logprobs, found.reference_logprobs)), ("kl/exact", found.exact_kl)):
        error = float(masked_sum(values, mask, -1).std()) / math.sqrt(N)
        assert abs(metrics[key] - truth) < 1.96 * error + 1e-4, key


def _rows(answers: Completions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prompt = tensor(answers.prompt_ids[0]).expand(N, -1)
    mask = torch.cat([torch.ones_like(prompt, dtype=torch.bool), answers.mask], dim=-1)
    return torch.cat([prompt, answers.ids], dim=-1), mask, torch.full((N,), prompt.shape[1]), answers.mask


def made(rows: list[list[int]], finished: list[bool], samples: int = 1) -> Completions:
    """Completions of given tokens; EOS is 1."""
    width = max(map(len, rows))
    ids = tensor([row + [0] * (width - len(row)) for row in rows])
    mask = tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    prompts = tuple(PROMPTS[i // samples] for i in range(len(rows)))
    texts = tuple(" ".join(map(str, row)) for row in rows)
    return Completions(prompts, ((),) * len(rows), ids, mask, tensor(finished), torch.zeros(mask.shape), texts)


def test_lengths_by_hand():
    """2, 4 and 8 tokens of at most 8, the last cut off; the restricted mean looks at the first 4."""
    found = length_metrics(made([[5, 1], [5, 6, 7, 1], [5] * 8], [True, True, False]), limit=8)
    assert found == {
        "length/mean": pytest.approx(14 / 3),
        "length/std": pytest.approx(math.sqrt((64 + 4 + 100) / 9 / 2)),
        "length/median": 4,
        "length/restricted_mean": pytest.approx((2 + 4 + 4) / 3),
        "length/truncated": pytest.approx(1 / 3),
        "length/eos_rate": pytest.approx(2 / 3),
        "length/terminated_mean": 3,
    }


def test_text_is_measured_without_eos():
    answers = made([[5, 5, 5, 5, 1], [6, 7, 1]], [True, True])
    found = text_metrics(answers)
    assert found["text/rep3"] == 0.5  # (5 5 5) twice; the second answer has no trigram
    assert found["text/distinct2"] == 2 / 4  # (5 5) three times and (6 7)
    assert found["text/self_bleu"] == 0.0
    shares = text_fields(answers)["rep3"].tolist()
    assert shares[0] == 0.5 and math.isnan(shares[1])


def test_what_a_completion_lacks_is_nan_in_its_fields_and_null_on_disk(tmp_path):
    from align.rows import read_lines
    from align.runs import Run

    answers = made([[5, 1], [6, 7, 8, 1]], [True, True], samples=2)
    rows = sample_rows(3, answers, text_fields(answers), {"length": tensor([2.0, 4.0])})
    with Run.create(tmp_path / "run", {}, {}) as run:
        run.log_samples(rows)
    first, second = read_lines(tmp_path / "run" / "samples.jsonl")
    assert (first["sample"], first["tokens"], first["rep3"], first["components"]) == (0, 2, None, {"length": 2.0})
    assert (second["sample"], second["prompt_id"], second["rep3"]) == (1, PROMPTS[0].id, 0.0)


# --- wins against the reference ---


def ruler(gold: Any, **pairs: Any) -> Probe:
    data = SimpleNamespace(heldout_prompts=PROMPTS, gold=gold, verifier=None, heldout_pairs=pairs.get("held", []),
                           train_pairs=pairs.get("train", []))  # fmt: skip
    cfg = SimpleNamespace(prompts=4, pairs=2, train_pairs=pairs.get("asked"), samples=8, greedy=False)
    return Probe(cfg, families.sampling(max_new_tokens=12), families.policy("llama"), data, Rewards({}), seed=0)


def length_gold(samples) -> list[float]:
    return [float(len(sample.completion_ids)) for sample in samples]


def test_an_untrained_policy_ties_with_itself():
    probe = ruler(length_gold)
    probe.policy.model = probe.policy.reference
    metrics, rows = probe.measure(0)
    assert (metrics["win/gold"], metrics["win/gold_lc"]) == (0.5, pytest.approx(0.5, abs=1e-12))
    assert {row["win"] for row in rows} == {0.5} and {row["kl_exact"] for row in rows} == {0.0}


def test_training_pairs_are_looked_at_where_asked_for_by_the_same_numbers():
    one, other = (PreferencePair(PROMPTS[i], text, "No.") for i, text in ((0, "An apple."), (1, "Rain")))
    names = ("accuracy", "margin", "chosen_logprob", "rejected_logprob")
    both = ruler(length_gold, held=[one, other], train=[one, other, one], asked=2).measure(5)[0]
    assert [both[f"pref/train_{name}"] for name in names] == [both[f"pref/{name}"] for name in names]
    alone = ruler(length_gold, held=[other], train=[one], asked=2).measure(5)[0]
    assert alone["pref/margin"] != alone["pref/train_margin"] != 0
    assert not any("train_" in key for key in ruler(length_gold, held=[one], train=[one]).measure(5)[0])


def test_wins_are_against_the_references_own_answers_and_survive_a_resume():
    """A policy of other weights, judged by length alone: each answer against the reference's to the same prompt."""
    probe = ruler(length_gold)
    metrics, rows = probe.measure(5)
    theirs = sample(probe.policy, PROMPTS, 8, probe.neutral, probe._seed, model=probe.policy.reference)
    expected = [0.5 * (1 + (a > b) - (a < b)) for a, b in zip([row["tokens"] for row in rows], theirs.lengths.tolist(),
                                                               strict=True)]  # fmt: skip
    assert [row["win"] for row in rows] == expected and len(set(expected)) > 1
    assert metrics["win/gold"] == pytest.approx(sum(expected) / len(expected))
    again = ruler(length_gold)
    again.restore(probe.state())
    assert again.measure(5)[0]["win/gold_lc"] == metrics["win/gold_lc"]
