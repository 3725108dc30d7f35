import math

import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.logprobs import exact_kl, token_logprobs


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
