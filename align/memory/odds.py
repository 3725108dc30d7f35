"""Shares, errors and horizons that decide whether an experiment can show anything. Pure arithmetic."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

RULE = 2.5  # standard errors below which no difference is claimed


def silent_groups(success: float, size: int) -> float:
    """Share of groups in which all answers are right or all wrong, so that their advantages are 0: p^G + (1 - p)^G."""
    return success**size + (1 - success) ** size


def credit(gamma: float, lam: float, length: int) -> float:
    """Weight of the last token's error in the first token's GAE advantage: (gamma lam)^(T - 1) (arXiv:1506.02438)."""
    return (gamma * lam) ** (length - 1)


def standard_error(sd: float, prompts: int, samples: int) -> float:
    """Of the difference of two arms' means over as many independent answers each: sd sqrt(2 / n)."""
    return sd * math.sqrt(2 / (prompts * samples))


def power(effect: float, error: float, level: float = 0.05) -> float:
    """Probability that a two-sided z test at this level finds a difference."""
    normal = NormalDist()
    critical = normal.inv_cdf(1 - level / 2)
    return normal.cdf(effect / error - critical) + normal.cdf(-effect / error - critical)


def detectable(error: float, wanted: float = 0.8, level: float = 0.05) -> float:
    """The difference found with this probability (the far tail, below 1e-6 here, left out)."""
    normal = NormalDist()
    return error * (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(wanted))


def labels(sharpness: float, length_bias: float, flips: float) -> tuple[float, float, float]:
    """Bradley-Terry labels of pairs whose gold and length are independent standard normals.

        P(first is chosen) = (1 - 2 eps) sigma(kappa (G_1 - G_2) + b (n_1 - n_2)) + eps

    -> shares of pairs in which the label agrees with gold, two raters agree, the longer one is chosen
    """
    # A grid of midpoints: a quadrature of polynomials would miss the kink at 0.
    points = np.linspace(-8, 8, 801)
    z = (points[1:] + points[:-1]) / 2
    weights = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    gap, longer = np.meshgrid(math.sqrt(2) * z, math.sqrt(2) * z, indexing="ij")
    both = np.outer(weights, weights)
    chosen = (1 - 2 * flips) / (1 + np.exp(-(sharpness * gap + length_bias * longer))) + flips

    def share(right: np.ndarray) -> float:
        return float((both * right).sum())

    agrees = share(np.where(gap > 0, chosen, 1 - chosen))
    raters = share(chosen**2 + (1 - chosen) ** 2)
    long = share(np.where(longer > 0, chosen, 1 - chosen))
    return agrees, raters, long
