"""Reward heads on frozen features: Bradley-Terry fits that take milliseconds, and what ensembles make of several.

A head is a vector v in the space of the features, its reward r(y) = v . f(y). The fit is a logistic regression of the
labels on the differences of chosen and rejected answers in few coordinates (`coordinates`), with a ridge:

    minimise  sum_i log(1 + exp(-w . (z_chosen_i - z_rejected_i))) + ridge / 2 |w|^2

Bradley-Terry labels say nothing about how prompts compare, so features are used less their prompt's mean everywhere
(`centred`), and rewards are compared within a prompt only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from reward_models.base import RewardError

Array = NDArray[np.float64]
TOLERANCE = 1e-8  # of a gradient's entry, beside a loss of 0.7 a pair


def centred(features: Array) -> Array:
    """[prompts, answers, ...] less each prompt's mean over its answers."""
    return np.asarray(features - features.mean(1, keepdims=True), dtype=np.float64)


def coordinates(deviations: Array, rank: int) -> Array:
    """[N, F] features less their prompt's mean -> [F, rank]: deviations @ that have variance 1 and no correlation.

    Features divided by their standard deviations (n in the denominator), then the `rank` directions in which they vary
    most (SVD), each divided by its own standard deviation. A feature without variance is left out.
    Raises RewardError when there are fewer directions than that.
    """
    spread = np.sqrt((deviations**2).mean(0))
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    _, lengths, directions = np.linalg.svd(deviations * inverse, full_matrices=False)
    found = int(np.count_nonzero(lengths > lengths[0] * 1e-6))
    if found < rank:
        raise RewardError(f"rank={rank}: {len(deviations)} answers vary in {found} directions only; lower the rank")
    return np.asarray(inverse[:, None] * directions[:rank].T * np.sqrt(len(deviations)) / lengths[:rank])


def without(basis: Array, deviations: Array, values: Array) -> Array:
    """Coordinates [F, rank] without the direction in which they go along with `values` [N], such as lengths.

        basis (I - u u'),   u ~ sum_i values_i z_i,   z_i = basis' deviations_i

    No head on what is left has any correlation with the values over these answers: of all projections that do so, the
    one that changes white coordinates least (LEACE, arXiv:2306.03819). Both less their prompt's mean.
    """
    along = (deviations @ basis).T @ values
    u = along / np.linalg.norm(along)
    return np.asarray(basis - np.outer(basis @ u, u))


def bradley_terry(differences: Array, ridge: float, prior: Array | None = None) -> Array:
    """[pairs, rank] coordinates of chosen less rejected answers -> w [rank], the minimum of the loss above.

    With a prior, an earlier w, the ridge is on what w differs from it: |w - prior|^2.
    """
    start = np.zeros(differences.shape[1]) if prior is None else prior

    def loss(w: Array) -> tuple[float, Array]:
        margins, moved = differences @ w, w - start
        value = np.logaddexp(0.0, -margins).sum() + ridge / 2 * (moved @ moved)
        return float(value), ridge * moved - differences.T @ expit(-margins)

    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": TOLERANCE, "ftol": 0}).x)


def unit(head: Array, deviations: Array) -> Array:
    """The head whose rewards have standard deviation 1 over these features: what members of an ensemble must share."""
    spread = float(np.std(deviations @ head))
    if spread == 0:
        raise RewardError("a head gives all answers the same reward: its labels say nothing")
    return np.asarray(head / spread)


def average_weights(heads: Array) -> Array:
    """WARM (arXiv:2401.12187): [k, F] -> the head of the mean weights.

    Of linear heads on the same features its rewards are exactly the mean of theirs.
    """
    return np.asarray(heads.mean(0))


def mean(rewards: Array) -> Array:
    return np.asarray(rewards.mean(0))


def worst_case(rewards: Array) -> Array:
    """WCO (arXiv:2310.02743): [k, ...] -> the least of the members' rewards."""
    return np.asarray(rewards.min(0))


def uncertainty_weighted(rewards: Array, coef: float) -> Array:
    """UWO (arXiv:2310.02743): [k, ...] -> mean - coef * variance over the members (k in the denominator)."""
    return np.asarray(rewards.mean(0) - coef * rewards.var(0))


def pair_accuracy(rewards: Array, gold: Array, counted: NDArray[np.bool_]) -> float:
    """Share of pairs of neighbouring answers, each answer in one pair, that the reward ranks as gold does; ties half.

    rewards, gold [prompts, answers]; counted, bool: pairs with another answer, or of equal gold, are left out.
    """
    even = rewards.shape[1] // 2 * 2
    apart = [np.asarray(x[:, 0:even:2] - x[:, 1:even:2]) for x in (rewards, gold)]
    kept = counted[:, 0:even:2] & counted[:, 1:even:2] & (apart[1] != 0)
    agreed = np.sign(apart[0][kept]) * np.sign(apart[1][kept])
    return float((agreed.mean() + 1) / 2) if kept.any() else float("nan")
