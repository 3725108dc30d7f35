import math

import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.draw import warp
from align.maths.logprobs import exact_kl, kept_logprobs, token_logprobs


def test_logprob_and_entropy_of_a_hand_made_distribution():
    probs = tensor([[0.5, 0.25, 0.25]])
    logprobs, entropy = token_logprobs(probs.log(), tensor([1]))
    assert_close(logprobs, tensor([math.log(0.25)]))
    assert_close(entropy, tensor([1.5 * math.log(2)]))  # 0.5 ln 2 + 2 x 0.25 x 2 ln 2


def test_temperature_half_squares_the_odds():
    logits = tensor([[math.log(0.75), math.log(0.25)]])  # odds 3:1 become 9:1
    logprobs, _ = token_logprobs(logits, tensor([0]), temperature=0.5)
    assert_close(logprobs, tensor([math.log(0.9)]))


def test_bfloat16_logits_are_scored_in_float32():
    logprobs, entropy = token_logprobs(torch.zeros(1, 1000, dtype=torch.bfloat16), tensor([7]))
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert_close(logprobs, tensor([-math.log(1000)]))


def test_exact_kl_of_two_coins():
    p, q = tensor([[0.5, 0.5]]), tensor([[0.9, 0.1]])
    assert_close(exact_kl(p.log(), q.log()), tensor([0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)]))


def test_exact_kl_of_a_distribution_with_itself_is_zero():
    logits = torch.randn(5, 40)
    assert exact_kl(logits, logits.clone()).tolist() == [0.0] * 5


def nucleus(temperature: float, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 0.5, 0.3, 0.15, 0.05 at a temperature, and what top-p keeps of them."""
    z = tensor([[0.5, 0.3, 0.15, 0.05]]).log() / temperature
    return z, warp(z, top_p=top_p)


def test_the_kl_of_a_nucleus_is_minus_the_log_of_the_mass_it_keeps():
    z, kept = nucleus(1.0, 0.75)  # 0.5 is too little, 0.5 + 0.3 is enough
    assert kept.isinf().tolist() == [[False, False, True, True]]
    assert_close(exact_kl(kept, z), tensor([-math.log(0.8)]))


def test_the_kl_of_a_colder_nucleus_by_hand():
    z, kept = nucleus(0.5, 0.9)  # squares: 0.25, 0.09, 0.0225, 0.0025 of 0.365; the first two are 0.93 of it
    a, b = 25 / 34, 9 / 34
    assert kept.isinf().sum() == 2
    assert_close(exact_kl(kept, z / 2), tensor([a * math.log(a / 0.5) + b * math.log(b / 0.3)]))


def test_logprob_and_entropy_of_a_nucleus():
    z, kept = nucleus(1.0, 0.75)
    logprobs, entropy = kept_logprobs(z, kept, tensor([0]))
    assert_close(logprobs, tensor([math.log(0.5 / 0.8)]))
    assert_close(entropy, tensor([-(5 / 8) * math.log(5 / 8) - (3 / 8) * math.log(3 / 8)]))


def test_a_sampled_token_just_outside_the_nucleus_has_a_finite_logprob():
    logprobs, _ = kept_logprobs(*nucleus(1.0, 0.75), tensor([2]))
    assert_close(logprobs, tensor([math.log(0.15 / 0.8)]))


def test_a_broken_logit_is_not_taken_for_one_that_was_cut_off():
    broken = tensor([[0.0, math.nan]])
    assert exact_kl(broken, torch.zeros(1, 2)).isnan().all() and exact_kl(torch.zeros(1, 2), broken).isnan().all()
