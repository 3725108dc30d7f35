"""Preference losses against values worked by hand and identities from their papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from align.maths import preference as p

LN2 = math.log(2)
ZERO = torch.zeros(3)
LENGTHS = tensor([4.0, 5.0, 6.0])


def logistic_loss(margin: float) -> float:
    """-log sigmoid(margin), in plain Python."""
    return math.log1p(math.exp(-margin))


def gradient(loss, at: float) -> float:
    """Derivative of a loss of one number at that number."""
    x = tensor([at], dtype=torch.float64, requires_grad=True)
    loss(x).sum().backward()
    assert x.grad is not None
    return x.grad.item()


def test_dpo_by_hand():  # beta (h_w - h_l) = 0.5 (2 - (-1)) = 1.5
    assert p.dpo(tensor([2.0]), tensor([-1.0]), beta=0.5).item() == pytest.approx(0.2014133, abs=1e-6)


def test_dpo_at_the_reference_is_ln_2():
    assert_close(p.dpo(ZERO, ZERO, beta=0.1), torch.full((3,), LN2))


def test_dpo_gradient_at_the_reference_is_half_beta_down_for_chosen_and_up_for_rejected():
    zero = torch.zeros(1, dtype=torch.float64)
    assert gradient(lambda h: p.dpo(h, zero, beta=0.3), at=0.0) == pytest.approx(-0.15)
    assert gradient(lambda h: p.dpo(zero, h, beta=0.3), at=0.0) == pytest.approx(+0.15)


def test_swapping_chosen_and_rejected_flips_dpos_gradient_at_the_reference():
    h = torch.zeros(2, requires_grad=True)
    (straight,) = torch.autograd.grad(p.dpo(h[:1], h[1:], beta=0.3).sum(), h)
    (swapped,) = torch.autograd.grad(p.dpo(h[1:], h[:1], beta=0.3).sum(), h)
    assert_close(straight, -swapped)


def test_dpo_of_a_pair_and_of_its_swap_differ_by_the_margin():  # -log s(m) + log s(-m) = -m
    chosen, rejected = tensor([1.7, -0.4]), tensor([0.2, 0.9])
    difference = p.dpo(chosen, rejected, beta=2.0) - p.dpo(rejected, chosen, beta=2.0)
    assert_close(difference, -2.0 * (chosen - rejected))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: p.dpo(a, b, beta=0.1),
        lambda a, b: p.cdpo(a, b, beta=0.1, label_smoothing=0.1),
        lambda a, b: p.ipo(a, b, LENGTHS, LENGTHS, beta=0.1),
        lambda a, b: p.rdpo(a, b, LENGTHS, LENGTHS + 1, beta=0.1, length_alpha=0.05),
        lambda a, b: p.simpo(a, b, LENGTHS, LENGTHS + 1, beta=2.0, gamma=0.5),
        lambda a, b: p.orpo(a, b, LENGTHS, LENGTHS + 1, tensor(1.0), beta=0.1),
        lambda a, b: p.bradley_terry(a, b),
    ],
    ids=["dpo", "cdpo", "ipo", "rdpo", "simpo", "orpo", "bradley_terry"],
)
def test_every_pair_loss_falls_with_the_chosen_and_rises_with_the_rejected(loss):
    chosen, rejected = tensor([-3.0, -2.0, -1.0]), tensor([-3.5, -2.0, -0.5])
    now = loss(chosen, rejected)
    assert (loss(chosen + 0.1, rejected) < now).all()
    assert (loss(chosen, rejected + 0.1) > now).all()


def test_cdpo_without_smoothing_is_dpo():
    chosen, rejected = torch.randn(8), torch.randn(8)
    assert_close(p.cdpo(chosen, rejected, 0.7, label_smoothing=0.0), p.dpo(chosen, rejected, 0.7))


def test_cdpo_at_the_reference_is_ln_2_whatever_the_smoothing():
    assert_close(p.cdpo(ZERO, ZERO, 0.1, label_smoothing=0.3), torch.full((3,), LN2))


def test_cdpo_is_the_mean_of_the_two_labels_weighted_by_their_probability():  # 0.9 x 0.2014133 + 0.1 x 1.7014133
    assert p.cdpo(tensor([3.0]), tensor([0.0]), 0.5, label_smoothing=0.1).item() == pytest.approx(0.3514133, abs=1e-6)


def test_cdpo_is_least_where_the_model_is_as_sure_as_the_labels():  # logit(0.9) = ln 9
    zero = torch.zeros(1, dtype=torch.float64)
    best = math.log(9) / 0.5

    def slope(h: float) -> float:
        return gradient(lambda x: p.cdpo(x, zero, 0.5, label_smoothing=0.1), at=h)

    assert slope(best) == pytest.approx(0, abs=1e-12)
    assert slope(best - 0.1) < 0 < slope(best + 0.1)


def test_ipo_by_hand():  # 6/3 - (-4)/2 = 4; 1/(2 x 0.25) = 2; (4 - 2)^2 = 4
    assert p.ipo(tensor([6.0]), tensor([-4.0]), tensor([3.0]), tensor([2.0]), beta=0.25).item() == pytest.approx(4.0)


def test_ipo_is_zero_where_the_mean_margin_is_one_over_two_beta():  # beta 0.1: margin 5 per token
    assert p.ipo(tensor([20.0]), tensor([0.0]), tensor([4.0]), tensor([9.0]), beta=0.1).item() == pytest.approx(0)


def test_ipo_at_the_reference_is_one_over_four_beta_squared():
    assert_close(p.ipo(ZERO, ZERO, LENGTHS, LENGTHS, beta=0.1), torch.full((3,), 25.0))


def test_ipo_pushes_a_margin_beyond_its_target_back():
    one = torch.ones(1, dtype=torch.float64)
    assert gradient(lambda h: p.ipo(h, 0 * one, one, one, beta=0.5), at=1.5) == pytest.approx(2 * (1.5 - 1.0))


def test_rdpo_of_equally_long_answers_is_dpo():
    chosen, rejected = torch.randn(3), torch.randn(3)
    assert_close(p.rdpo(chosen, rejected, LENGTHS, LENGTHS, 0.3, length_alpha=0.7), p.dpo(chosen, rejected, 0.3))


def test_rdpo_by_hand():  # 0.1 x (2 - 1) + 0.05 x (30 - 20) = 0.6
    loss = p.rdpo(tensor([2.0]), tensor([1.0]), tensor([30.0]), tensor([20.0]), beta=0.1, length_alpha=0.05)
    assert loss.item() == pytest.approx(logistic_loss(0.6), abs=1e-6)


def test_rdpo_teaches_less_from_a_win_that_is_longer():
    def push(chosen_length: float) -> float:
        one = torch.ones(1, dtype=torch.float64)
        return -gradient(
            lambda h: p.rdpo(h, 0 * one, chosen_length * one, 20 * one, beta=0.1, length_alpha=0.05), at=0.0
        )

    assert push(40) < push(20) < push(10)


def test_ldpo_by_hand():  # shared 2 tokens: (-1 - 2) + 0.5 (-4 - 8) = -9; the masked -100 never counts
    tokens = tensor([[-100.0, -1.0, -2.0, -4.0, -8.0, -100.0]])
    mask = tensor([[0, 1, 1, 1, 1, 0]]).bool()
    assert p.ldpo_logprobs(tokens, mask, shared=tensor([2]), ld_alpha=0.5).tolist() == [-9.0]


def test_ldpo_with_alpha_one_is_the_plain_sum_and_with_alpha_zero_the_shared_part():
    tokens, mask = -torch.rand(5, 9), torch.ones(5, 9).bool()
    shared = tensor([1, 3, 5, 9, 9])
    assert_close(p.ldpo_logprobs(tokens, mask, shared, ld_alpha=1.0), tokens.sum(-1))
    first = torch.stack([row[:n].sum() for row, n in zip(tokens, shared, strict=True)])
    assert_close(p.ldpo_logprobs(tokens, mask, shared, ld_alpha=0.0), first)


def test_simpo_by_hand():  # 2 (-6/3 - (-12/4)) - 0.5 = 2 (1) - 0.5 = 1.5
    loss = p.simpo(tensor([-6.0]), tensor([-12.0]), tensor([3.0]), tensor([4.0]), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(0.2014133, abs=1e-6)


def test_simpo_is_ln_2_where_the_mean_logprob_margin_is_gamma_over_beta():  # (-1) - (-1.25) = 0.5 / 2
    loss = p.simpo(tensor([-3.0]), tensor([-5.0]), tensor([3.0]), tensor([4.0]), beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(LN2, abs=1e-6)


def test_orpo_odds_by_hand():
    # mean logprobs ln 0.8 and ln 0.5: odds 4 and 1, so the ratio wins with 4/5 and the penalty is ln 1.25
    chosen, rejected = 3 * tensor([0.8]).log(), 2 * tensor([0.5]).log()
    loss = p.orpo(chosen, rejected, tensor([3.0]), tensor([2.0]), chosen_nll=tensor([0.2]), beta=0.5)
    assert loss.item() == pytest.approx(0.2 + 0.5 * math.log(1.25), abs=1e-6)


def test_orpo_of_equal_odds_is_the_nll_plus_beta_ln_2():
    loss = p.orpo(tensor([-3.0]), tensor([-2.0]), tensor([3.0]), tensor([2.0]), tensor([1.0]), beta=0.1)
    assert loss.item() == pytest.approx(1.0 + 0.1 * LN2, abs=1e-6)


def test_orpo_is_finite_with_a_finite_gradient_for_very_sure_and_very_unsure_answers():
    chosen = tensor([-1e-6, -60.0], requires_grad=True)
    loss = p.orpo(chosen, tensor([-60.0, -1e-6]), torch.ones(2), torch.ones(2), tensor(0.0), beta=1.0)
    loss.sum().backward()
    assert chosen.grad is not None and loss.isfinite().all() and chosen.grad.isfinite().all()


def test_orpo_odds_keep_their_digits_next_to_certainty():  # log odds of exp(-20) and of 1 - 1e-6: -20 and ln 1e6
    one = torch.ones(1)
    loss = p.orpo(tensor([-20.0]), tensor([-1e-6]), one, one, chosen_nll=tensor(0.0), beta=1.0)
    assert loss.item() == pytest.approx(20 + math.log(1e6), abs=1e-4)


def both_labels(log_ratio: float, kl: float, beta: float = 1.0, weights: tuple[float, float] = (1.0, 1.0)) -> list:
    ratios = torch.full((2,), log_ratio)
    return p.kto(ratios, tensor([True, False]), tensor(kl), beta, *weights).tolist()


def test_kto_at_the_reference_is_half_of_each_weight():
    assert both_labels(0.0, 0.0, weights=(1.0, 1.5)) == pytest.approx([0.5, 0.75])


def test_kto_by_hand():  # beta (h - z) = 0.5 (3 - 1) = 1; 1 - sigmoid(1) = 0.2689414, 1 - sigmoid(-1) = 0.7310586
    assert both_labels(3.0, 1.0, beta=0.5) == pytest.approx([0.2689414, 0.7310586], abs=1e-6)


def test_kto_falls_when_a_good_answer_gains_and_rises_when_a_bad_one_does():
    (good, bad), (good_more, bad_more) = both_labels(0.0, 0.2), both_labels(0.1, 0.2)
    assert good_more < good and bad_more > bad


def test_kto_reference_point_is_the_mean_but_never_negative_and_carries_no_gradient():
    ratios = tensor([1.0, 2.0], requires_grad=True)
    assert p.kto_reference_point(ratios).item() == 1.5
    assert p.kto_reference_point(-ratios).item() == 0.0
    assert not p.kto_reference_point(ratios).requires_grad


def test_bradley_terry_by_hand():  # r_w - r_l = 1.5; (0.5 + -1)^2 = 0.25
    chosen, rejected = tensor([0.5]), tensor([-1.0])
    assert p.bradley_terry(chosen, rejected).item() == pytest.approx(0.2014133, abs=1e-6)
    assert p.bradley_terry(chosen, rejected, center=0.1).item() == pytest.approx(0.2014133 + 0.025, abs=1e-6)


def test_bradley_terry_without_centring_sees_only_the_difference():
    chosen, rejected = torch.randn(4), torch.randn(4)
    assert_close(p.bradley_terry(chosen + 5, rejected + 5), p.bradley_terry(chosen, rejected))


def test_accuracy_counts_ties_half():  # one win, one loss, two ties
    assert p.accuracy(tensor([2.0, 1.0, 3.0, 0.0]), tensor([1.0, 2.0, 3.0, 0.0])).item() == 0.5
    assert p.accuracy(ZERO, ZERO).item() == 0.5
    assert p.accuracy(tensor([1.0, 1.0]), tensor([0.0, 1.0])).item() == 0.75


def test_losses_are_one_per_pair():
    shapes: list[Tensor] = [
        p.dpo(ZERO, ZERO, 0.1),
        p.ipo(ZERO, ZERO, LENGTHS, LENGTHS, 0.1),
        p.simpo(-LENGTHS, -LENGTHS, LENGTHS, LENGTHS, 2.0, 0.5),
        p.orpo(-LENGTHS, -LENGTHS, LENGTHS, LENGTHS, tensor(1.0), 0.1),
    ]
    assert [tuple(loss.shape) for loss in shapes] == [(3,)] * 4
