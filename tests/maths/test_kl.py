"""An enumerable policy: every expectation is a finite sum, so an estimator is right or wrong, not close."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.kl import k1, k2, k3
from align.maths.logprobs import exact_kl

Q = tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
THETA = tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)


def expectation(estimator, theta):
    log_p = theta.log_softmax(-1)
    return (log_p.exp() * estimator(log_p, Q.log())).sum()


def test_hand_numbers():
    log_p, log_q = tensor([math.log(0.5)]), tensor([math.log(0.25)])
    assert_close(k1(log_p, log_q), tensor([math.log(2)]))
    assert_close(k2(log_p, log_q), tensor([math.log(2) ** 2 / 2]))
    assert_close(k3(log_p, log_q), tensor([-0.5 + math.log(2)]))  # r = 1/2: (r - 1) - ln r


def test_k1_and_k3_have_the_kl_as_expectation():
    p = THETA.softmax(-1)
    kl = (p * (p.log() - Q.log())).sum()
    assert_close(expectation(k1, THETA), kl)
    assert_close(expectation(k3, THETA), kl)
    assert_close(exact_kl(THETA.unsqueeze(0), Q.log().unsqueeze(0)).squeeze().double(), kl, rtol=1e-6, atol=1e-6)


def test_k3_is_never_negative_and_k1_can_be():
    log_p, log_q = tensor([-3.0, -1.0, -2.0]), tensor([-1.0, -3.0, -2.0])
    assert (k3(log_p, log_q) >= 0).all()
    assert k1(log_p, log_q)[0] < 0


def test_k3_keeps_its_digits_near_zero():
    assert_close(
        k3(tensor([0.0]), tensor([1e-4])), tensor([5e-9]), rtol=1e-2, atol=0
    )  # x^2 / 2, lost by exp(x) - 1 - x


@pytest.mark.parametrize(("estimator", "truth"), [("k1", "nothing"), ("k2", "reverse"), ("k3", "forward")])
def test_gradient_of_an_estimator_used_as_a_loss(estimator, truth):
    """Only log p inside the estimator is differentiated: k1 gives 0, k2 grad KL(p||q), k3 grad KL(q||p)."""
    theta = THETA.clone().requires_grad_(True)
    log_p = theta.log_softmax(-1)
    loss = (log_p.detach().exp() * {"k1": k1, "k2": k2, "k3": k3}[estimator](log_p, Q.log())).sum()
    (gradient,) = torch.autograd.grad(loss, theta)

    other = THETA.clone().requires_grad_(True)
    log_p, p = other.log_softmax(-1), other.softmax(-1)
    objective = {
        "nothing": 0 * p.sum(),
        "reverse": (p * (log_p - Q.log())).sum(),
        "forward": (Q * (Q.log() - log_p)).sum(),
    }[truth]
    assert_close(gradient, torch.autograd.grad(objective, other)[0])


def test_k3_misses_what_a_nucleus_leaves_out():
    """Of 0.5, 0.3, 0.2 the first two are kept: r = 0.8 wherever p samples, so k3 is the KL of -ln 0.8 less the 0.2."""
    p, q = tensor([0.5 / 0.8, 0.3 / 0.8]).log(), tensor([0.5, 0.3]).log()
    assert_close(k1(p, q), torch.full((2,), -math.log(0.8)))
    assert_close(k3(p, q), torch.full((2,), -math.log(0.8) - 0.2))
