"""Drawing a token: the distribution is exact, rounding of the logits does not show, streams are independent."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor, tensor
from torch.testing import assert_close
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from align.maths.draw import BLOCK, LEAST, PART, draw, noise_of, noise_size, warp

P_VALUE = 1e-4
CUTS = [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}]
NAMES = [" ".join(cut) or "nothing" for cut in CUTS]


def random_logits(*shape: int, std: float = 2.5, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def noise_for(draws: int, V: int, seed: int = 0) -> Tensor:
    return noise_of(seed, "prompt", 0, draws, noise_size(V))


def drawn(logits: Tensor, draws: int, seed: int = 0) -> Tensor:
    """How often each token of one row is drawn. [V] -> [V]"""
    V = len(logits)
    counts = torch.zeros(V, dtype=torch.long)
    for noise in noise_for(draws, V, seed).split(2000):
        counts += torch.bincount(draw(logits.expand(len(noise), -1), noise)[0], minlength=V)
    return counts


def p_value(counts: Tensor, probs: Tensor) -> float:
    """Of the counts under the probabilities; tokens expected fewer than five times share one cell."""
    assert counts[probs == 0].sum() == 0
    counts, probs = counts[probs > 0], probs[probs > 0].double()
    total = int(counts.sum())
    rare = probs * total < 5
    observed = torch.cat([counts[~rare], counts[rare].sum().view(1)]).double()
    expected = torch.cat([probs[~rare], probs[rare].sum().view(1)]) * total
    observed, expected = (observed[:-1], expected[:-1]) if not rare.any() else (observed, expected)
    assert len(observed) > 5
    return float(chisquare(observed.numpy(), (expected * total / expected.sum()).numpy()).pvalue)


def by_inversion(logits: Tensor, uniforms: Tensor) -> Tensor:
    """What the race is measured against: the cumulative distribution inverted in vocabulary order. -> [B, draws]"""
    cumulative = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)


# The race


def test_a_race_by_hand():
    """Blocks of 0.25 and 0.75, the second of parts 0.5 (tokens 0.375 and 0.125) and 0.25."""
    logits = torch.full((4, BLOCK + 2 * PART), -math.inf)
    probs = {7: 0.25, BLOCK: 0.375, BLOCK + 1: 0.125, BLOCK + PART: 0.25}
    for token, prob in probs.items():
        logits[:, token] = math.log(prob)
    noise = torch.ones(4, noise_size(BLOCK + 2 * PART))
    parts, of_part = 2, 2 + BLOCK // PART
    noise[0, :2] = tensor([1.0, 4])  # keys 0.25 and 0.1875: the first block, which has one token
    noise[1, :2] = tensor([1.0, 2])  # 0.25 and 0.375: the second; parts 0.5 and 0.25, the first; 0.375 and 0.125
    noise[2, of_part : of_part + 2] = tensor([4.0, 1])  # second, first, then 0.094 and 0.125: its second token
    noise[3, parts : parts + 2] = tensor([1.0, 0.25])  # second, then 0.5 and 1: the second part, which has one token
    tokens, logprobs = draw(logits, noise)
    assert tokens.tolist() == [7, BLOCK, BLOCK + 1, BLOCK + PART]
    assert_close(logprobs, tensor([0.25, 0.375, 0.125, 0.25]).log())


def test_a_draw_takes_one_number_for_each_block_and_64_more():
    assert [noise_size(V) for V in (10, 1024, 1025, 49_152, 151_936)] == [65, 65, 66, 112, 213]


@pytest.mark.parametrize("V", [3, 50, 1000, 1024, 1025, 2048, 2500])
def test_frequencies_are_the_exact_probabilities(V):
    logits = random_logits(V, std=1.0) if V > 3 else tensor([0.0, 1.0, 2.0])
    counts, probs = drawn(logits, 40_000), logits.softmax(-1)
    if V == 3:
        assert_close(counts / 40_000, probs, rtol=0, atol=0.01)  # four standard errors
    else:
        assert p_value(counts, probs) > P_VALUE


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("cut", CUTS, ids=NAMES)
def test_frequencies_are_those_of_the_cut_distribution_at_its_temperature(cut, temperature):
    logits = random_logits(700, std=1.0)
    warped = warp(logits[None], temperature, **cut)[0]
    counts = drawn(warped, 40_000, seed=3)
    assert p_value(counts, theirs(logits[None], temperature, **cut)[0].softmax(-1)) > P_VALUE


def test_a_wrong_temperature_is_noticed():
    logits = random_logits(700)
    assert p_value(drawn(warp(logits[None], 0.95)[0], 40_000), logits.softmax(-1)) < P_VALUE


def test_the_noise_is_fine_enough_for_rare_tokens():
    """A block of mass 1e-6 wins with noise near 1e-6. From float32 uniforms that would be one of 16 multiples of 2^-24;
    here as many are below 2^-12 as should be, and they lie between the multiples."""
    noise = noise_for(2000, 49_152).flatten()
    small = noise[noise < 2**-12].double()
    expected = len(noise) * -math.expm1(-(2**-12))
    assert abs(len(small) - expected) < 4 * math.sqrt(expected)
    uniforms = -torch.expm1(-small) * 2**24
    assert ((uniforms - uniforms.round()).abs() > 1e-3).double().mean() > 0.9


# Rounding


def test_rounding_of_the_logits_flips_no_token_of_the_race_but_many_of_the_inversion():
    """20,480 draws at V = 49,152 from peaked logits (probabilities fall as rank^-1.2), against the same draws after
    relative noise of 1e-7 to 1e-6."""
    V, rows, draws, flips, inverted = 49_152, 64, 40, 0, 0
    g = torch.Generator().manual_seed(0)
    for i in range(8):
        ranks = torch.rand(rows, V, generator=g).argsort(-1) + 1.0
        logits = 20 - 1.2 * ranks.log()
        size = 10 ** (-7 + i / 7)
        moved = logits * (1 + size * torch.randn(rows, V, generator=g))
        for j in range(draws):
            noise = noise_of(j, str(i), 0, rows, noise_size(V))
            flips += int((draw(logits, noise)[0] != draw(moved, noise)[0]).sum())
        uniforms = torch.rand(rows, draws, generator=g)
        inverted += int((by_inversion(logits, uniforms) != by_inversion(moved, uniforms)).sum())
    print(f"flips of {8 * draws * rows}: race {flips}, inversion {inverted}")
    assert flips <= 1
    assert inverted > 20


# What must never happen


def test_impossible_tokens_are_never_drawn():
    logits = random_logits(300, 600, std=3.0)
    logits[:, :290] = logits[:, 310:] = -math.inf
    for noise in (noise_for(300, 600), torch.full((300, 65), LEAST), torch.full((300, 65), 16.6)):
        tokens, logprobs = draw(logits, noise)
        assert ((tokens >= 290) & (tokens < 310)).all() and torch.isfinite(logprobs).all()


def test_tokens_that_underflow_are_never_drawn_and_a_certain_one_always():
    logits = torch.full((1000, 2100), -150.0)  # exp(-150) is 0 in float32
    logits[:, 2050] = 0.0
    tokens, logprobs = draw(logits, noise_for(1000, 2100))
    assert (tokens == 2050).all() and (logprobs == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_says_so_in_its_logprob_and_no_other_row_does(bad):
    logits = random_logits(3, 600)
    logits[1, 300] = bad
    logits[2] = -math.inf
    for noise in (noise_for(3, 600), None):
        tokens, logprobs = draw(logits, noise)
        assert ((tokens >= 0) & (tokens < 600)).all()
        assert torch.isnan(logprobs).tolist() == [False, True, True]


def test_a_token_past_a_short_last_block_is_never_drawn():
    logits = torch.full((2000, 1025), -20.0)
    logits[:, 1024] = 0.0
    assert (draw(logits, noise_for(2000, 1025))[0] == 1024).all()


# Logprobs


@pytest.mark.parametrize("cut", CUTS, ids=NAMES)
@pytest.mark.parametrize("greedy", [False, True])
def test_logprobs_are_those_of_the_distribution_that_is_drawn_from(cut, greedy):
    logits = random_logits(64, 3000)
    tokens, logprobs = draw(warp(logits, 0.7, **cut), None if greedy else noise_for(64, 3000))
    exact = theirs(logits.double(), 0.7, **cut).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert_close(logprobs.double(), exact, rtol=0, atol=1e-6)


def test_greedy_is_the_most_likely_token():
    logits = random_logits(20, 600)
    assert draw(warp(logits, 1.3, top_p=0.5), None)[0].tolist() == logits.argmax(-1).tolist()


def test_bfloat16_logits_are_drawn_in_float32():
    logits = random_logits(50, 600).bfloat16()
    for temperature in (1.0, 0.7):
        ours, wide = (draw(warp(z, temperature, top_p=0.9), noise_for(50, 600)) for z in (logits, logits.float()))
        assert ours[0].tolist() == wide[0].tolist() and ours[1].dtype == torch.float32
        assert_close(ours[1], wide[1], rtol=0, atol=0)


# What is cut off


def theirs(logits: Tensor, temperature: float, top_k=None, top_p=None, min_p=None) -> Tensor:
    """transformers' warpers in the order of `generate`."""
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits


MORE = [*CUTS, {"top_k": 1}, {"top_k": 9999}, {"top_p": 0.01}, {"top_p": 0.99}, {"min_p": 0.9}, {"min_p": 1e-6},
        {"top_k": 100, "top_p": 0.5}, {"top_p": 0.95, "min_p": 0.002}]  # fmt: skip


@pytest.mark.parametrize("cut", MORE, ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
def test_what_is_cut_off_is_what_transformers_cuts_off(cut, ties):
    cases = 0
    for std, V in ((0.3, 700), (2.5, 700), (6.0, 3000)):
        logits = random_logits(50, V, std=std, seed=V)
        if ties:
            logits = (logits * 4).round() / 4
        ours, other = warp(logits, 0.8, **cut), theirs(logits, 0.8, **cut)
        if ties and "top_p" in cut:  # where we keep all that are equal at the end of it
            least = other.masked_fill(torch.isinf(other), math.inf).amin(-1, keepdim=True)
            other = torch.where(ours == least, ours, other)
        assert_close(ours, other, rtol=0, atol=0)
        cases += int(torch.isinf(ours).any())
    assert cases > 0 or cut in ({}, {"top_k": 9999})


def test_nothing_to_cut_costs_nothing():
    logits = random_logits(4, 50)
    assert warp(logits) is logits


def test_top_p_of_equal_tokens_by_hand():
    """0.4 and two of 0.15 reach 0.6: the third stays too, 0.1 and 0.05 go. 0.85 are reached without 0.1."""
    logits = tensor([[0.15, 0.4, 0.05, 0.15, 0.15, 0.1]]).log()
    for p, kept in ((0.39, [1]), (0.6, [0, 1, 3, 4]), (0.849, [0, 1, 3, 4]), (0.851, [0, 1, 3, 4, 5])):
        assert torch.isfinite(warp(logits, top_p=p))[0].nonzero().squeeze(-1).tolist() == kept


# Noise


def test_noise_is_standard_exponential():
    noise = noise_for(400, 1000)
    assert kstest(noise.flatten().numpy(), "expon").pvalue > P_VALUE
    assert noise.dtype == torch.float32 and float(noise.min()) >= LEAST and float(noise.max()) < 17


def test_the_noise_of_a_position_does_not_depend_on_how_many_there_are():
    assert torch.equal(noise_of(1, "x", 2, 64, 448)[:7], noise_of(1, "x", 2, 7, 448))
    assert torch.equal(noise_of(1, "x", 2, 1000, 13)[:1], noise_of(1, "x", 2, 1, 13))


def test_a_uniform_of_zero_is_no_zero_of_the_noise(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, dtype: torch.zeros(*shape, dtype=dtype))
    assert (noise_of(0, "x", 0, 2, 5) == LEAST).all()


def test_streams_of_other_seeds_prompts_samples_and_positions_are_independent():
    """Correlations of 20,000 pairs: 5 standard errors are 0.035."""
    streams = [noise_of(seed, prompt, sample, 100, 200) for seed in (0, 1) for prompt in ("a", "b", "ab")
               for sample in (0, 1, 11)]  # fmt: skip
    flat = torch.stack([stream.flatten() for stream in streams] + [streams[0].roll(1, 0).flatten()])
    correlation = torch.corrcoef(flat.double()) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.035


def test_a_stream_is_the_same_every_time():
    assert torch.equal(noise_of(3, "prompt", 1, 5, 20), noise_of(3, "prompt", 1, 5, 20))
