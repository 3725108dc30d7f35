"""Win rates: how often one policy's answer is judged better than another's, plain and with length controlled."""

from __future__ import annotations

import torch
from torch import Tensor

PRIOR_STD = 5.0  # log-odds. Bounds the fit where wins are separable; 500 comparisons move by less than 0.001 (test)
NEWTON_STEPS = 50


def wins(scores: Tensor, others: Tensor) -> Tensor:
    """1 where the score is the higher, 0 where the other is, 0.5 for a tie. [B], [B] -> [B] float32"""
    assert scores.shape == others.shape, (scores.shape, others.shape)
    return (torch.sign(scores - others) + 1) / 2


def length_controlled(won: Tensor, length_differences: Tensor) -> float:
    """Win rate that would be seen at equal lengths (length-controlled AlpacaEval, arXiv:2404.04475).

        logit P(win_i) = theta + phi tanh(d_i / std(d)),    d_i = own length - other's length
        length-controlled win rate = sigmoid(theta)

    Fitted by maximum likelihood, ties as half a win, with normal priors of standard deviation 5 on theta and phi. The
    paper's third term, the difficulty of an instruction, is fitted over many models and is left out. Where all
    differences are equal there is no effect of length to be seen: then it is the plain win rate, shrunk by the prior.
    won [B] in [0, 1], length_differences [B] -> a float in (0, 1)
    """
    assert won.shape == length_differences.shape and won.numel() > 0, (won.shape, length_differences.shape)
    target, difference = won.double(), length_differences.double()
    spread = difference.std(correction=0)
    length = torch.tanh(difference / spread) if spread > 0 else torch.zeros_like(difference)
    features = torch.stack([torch.ones_like(length), length], dim=-1)  # [B, 2]
    prior = torch.eye(2, dtype=torch.double) / PRIOR_STD**2
    weights = torch.zeros(2, dtype=torch.double)
    for _ in range(NEWTON_STEPS):
        p = (features @ weights).sigmoid()
        gradient = features.T @ (p - target) + prior @ weights
        hessian = features.T @ (features * (p * (1 - p)).unsqueeze(-1)) + prior
        step = torch.linalg.solve(hessian, gradient)
        weights = weights - step * min(1.0, 2.0 / float(step.norm().clamp(min=1e-12)))  # the loss is convex
        if step.norm() < 1e-10:
            break
    return float(weights[0].sigmoid())
