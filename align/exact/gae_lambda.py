"""What lambda and gamma do to an advantage whose critic is wrong, on a token process small enough to enumerate.

T tokens, each 0 or 1 with probability 1/2, and the reward sum_u w_u x_u when all are said. The true value before t
is V_t = sum_{u < t} w_u x_u + sum_{u >= t} w_u / 2, so with gamma = 1 a step is worth V_{t+1} - V_t = w_t (x_t - 1/2).
The critic says kappa gamma^(T-1-t) V_t: at kappa = 1 the truth (discounted from the last token), at kappa = 0 nothing.
With n = T - 1 and the advantage of the first token written as a sum over the tokens,

    A = gamma^n sum_u c_u w_u (x_u - 1/2) + a constant,   c_u = kappa lambda^u + (1 - kappa) lambda^n

because delta_u = kappa gamma^(n-u) w_u (x_u - 1/2) before the end and the last one pays what is left, (1 - kappa) V.
So of the difference w_0 that token 0 makes, A keeps the share

    gamma^n (kappa + (1 - kappa) lambda^n)

and bias = w_0 (share - 1): it shrinks as lambda rises unless kappa = 1. Given token 0, Var x = 1/4 for the others:

    Var A = gamma^(2n) / 4  sum_{u >= 1} (c_u w_u)^2

which rises with lambda. gamma < 1 shrinks both, signal and noise. With a critic of 0 the share is (gamma lambda)^(T-1).
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from align.exact import Check, Exact, Figure, Panel, furthest, relative

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]  # a row of a table
HAND = "closed form, derived in the module"
WORTH = (1.0, 0.5, -1.5, 0.75, 1.25, -0.5, 1.0, 2.0)  # w_u: what each of eight tokens adds to the reward
LAMBDAS, GAMMAS, KAPPAS = (0.0, 0.5, 0.9, 0.95, 1.0), (0.95, 0.99, 1.0), (0.0, 0.5, 1.0)
PRINTED = ((1.0, 0.95, 48, 0.090), (1.0, 0.95, 96, 0.0077), (0.99, 1.0, 96, 0.385))  # gamma, lambda, T, weight
LENGTHS = (1, 12, 24, 48, 96, 192)
DRAWN = 256  # rollouts, as many as a step might sample

CRITICS = {0.0: "no critic", 0.5: "half a critic", 1.0: "true critic"}
FIGURE = Figure(
    "The advantage of the first of 8 tokens, γ = 1. Bias: what is missing of the token's true worth, which is 1. "
    "Variance: the noise that the other tokens put into it. λ = 0 believes the critic, λ = 1 waits for the reward: "
    "the first is quiet and as wrong as the critic, the second is right and noisy whatever the critic says.",
    tuple(
        Panel(title, "bias and variance", "lambda", {column: ""}, ("λ", label), "kappa", CRITICS, {"gamma": 1.0})
        for title, column, label in (
            ("Bias: a larger λ mends a wrong critic", "bias", "bias of the advantage"),
            ("Variance: the price is noise", "variance", "variance of the advantage"),
        )
    ),
)


def compute() -> Exact:
    weights = [
        {"gamma": gamma, "lambda": lam, "T": T, "weight": first_weight(gamma, lam, T)}
        for gamma in GAMMAS for lam in LAMBDAS for T in LENGTHS
    ]  # fmt: skip
    rows = [_row(kappa, gamma, lam) for kappa in KAPPAS for gamma in GAMMAS for lam in LAMBDAS]
    checks = [
        relative(f"weight of the reward at token 1 of {T}, gamma {gamma:g}, lambda {lam:g}, no critic", printed,
                 first_weight(gamma, lam, T), 0.007, "arXiv:1506.02438, eq. 16: (gamma lambda)^(T-1), to two digits")
        for gamma, lam, T, printed in PRINTED
    ]  # fmt: skip
    curve = furthest(((r["gamma"] * r["lambda"]) ** (r["T"] - 1), r["weight"]) for r in weights)
    checks.append(Check("(gamma lambda)^(T-1), where it is furthest off", *curve, 1e-12, HAND))
    for what in ("bias", "variance"):
        curve = furthest((row[f"{what} by hand"], row[what]) for row in rows)
        checks.append(Check(f"{what} of the first advantage, where it is furthest off", *curve, 1e-12, HAND))
    checks += [_monotone(rows, 0.5, gamma) for gamma in GAMMAS]
    right = [row for row in rows if row["kappa"] == 1 and row["gamma"] == 1]
    largest = max(abs(row["bias"]) for row in right)
    checks.append(Check("a true critic: largest bias at any lambda", 0, largest, 1e-12, HAND))
    checks.append(Check("a true critic: variance at lambda = 0", 0, right[0]["variance"], 1e-12, HAND))
    return Exact(tuple(checks), {"weights": weights, "bias and variance": rows}, FIGURE)


def first_weight(gamma: float, lam: float, T: int) -> float:
    """Advantage of the first of T tokens where only the last is rewarded, by 1, and the critic says 0."""
    import torch

    from align.maths import advantages

    rewards = torch.zeros(1, T, dtype=torch.float64)
    rewards[0, -1] = 1
    mask = torch.ones(1, T, dtype=torch.bool)
    return float(advantages.gae(rewards, torch.zeros_like(rewards), mask, gamma, lam)[0, 0])


def _first_advantages(kappa: float, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """All 2^T token sequences, which are equally likely: their first token, their first advantage. [2^T], [2^T]"""
    import torch

    from align.maths import advantages

    tokens = torch.tensor(list(product((0.0, 1.0), repeat=len(WORTH))), dtype=torch.float64)
    worth = torch.tensor(WORTH, dtype=torch.float64)
    T = len(WORTH)
    gained = (tokens - 0.5) * worth
    values = worth.sum() / 2 + gained.cumsum(-1) - gained  # before each token
    left = gamma ** torch.arange(T - 1, -1, -1, dtype=torch.float64)
    rewards = torch.zeros_like(tokens)
    rewards[:, -1] = (tokens * worth).sum(-1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return tokens[:, 0], advantages.gae(rewards, kappa * left * values, mask, gamma, lam)[:, 0]


def _row(kappa: float, gamma: float, lam: float) -> Row:
    import torch

    first, found = _first_advantages(kappa, gamma, lam)
    groups = found[first == 1], found[first == 0]
    n = len(WORTH) - 1
    coefficients = [kappa * lam**u + (1 - kappa) * lam**n for u in range(1, n + 1)]
    drawn = found[torch.randint(len(found), (DRAWN,), generator=torch.Generator().manual_seed(0))]
    by_hand = sum((c * w) ** 2 for c, w in zip(coefficients, WORTH[1:], strict=True)) * gamma ** (2 * n) / 4
    return {
        "kappa": kappa, "gamma": gamma, "lambda": lam,
        "bias": float(groups[0].mean() - groups[1].mean()) - WORTH[0],
        "bias by hand": WORTH[0] * (gamma**n * (kappa + (1 - kappa) * lam**n) - 1),
        "variance": float(torch.stack([group.var(correction=0) for group in groups]).mean()),
        "variance by hand": by_hand,
        f"std of {DRAWN} drawn": float(drawn.std()),
        "std of all": float(found.std(correction=0)),
    }  # fmt: skip


def _monotone(rows: list[Row], kappa: float, gamma: float) -> Check:
    """Steps of lambda at which the variance rises and the bias shrinks: all of them."""
    chosen = [row for row in rows if row["kappa"] == kappa and row["gamma"] == gamma]
    steps = [b["variance"] > a["variance"] and abs(b["bias"]) < abs(a["bias"]) for a, b in pairwise(chosen)]
    name = f"half a critic, gamma {gamma:g}: steps of lambda with more variance and less bias"
    return Check(name, len(steps), sum(steps), 0, HAND)
