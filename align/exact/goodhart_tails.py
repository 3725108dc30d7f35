"""Is a reward model that is wrong enough for over-optimisation? Only if its errors have a tail, or a hole to fall into.

Gold G ~ N(0, 1), proxy X = G + E, best of n by X: E gold_n = integral n F(x)^(n-1) E[G | X = x] f(x) dx.

light     E ~ N(0, 1): E[G | x] = x/2 and X = sqrt(2) Z, so E gold_n = m_n / sqrt(2), m_n the expected maximum of n
          normals: it rises for ever, as sqrt(ln n). Noise in the labels alone makes no downturn.
heavy     E = s t, t of Student's distribution with nu = 1.5: P(E > x) ~ C x^-nu, C = s^nu K nu^((nu-1)/2), where
          K = gamma((nu+1)/2) / (sqrt(nu pi) gamma(nu/2)). Far out E[G | x] = -f'(x)/f(x) = (nu+1)/x, and the maximum M
          is Frechet, E 1/M = gamma(1 + 1/nu) (n C)^(-1/nu): E gold_n falls to 0 as n^(-1/nu) (arXiv:2407.14503).
extremal  light noise, and with chance e an answer that the proxy adores and gold does not (value -d):
          E gold_n = (1-e)^n m_n / sqrt(2) - (1 - (1-e)^n) d: it turns long before one is expected, at n = 1/e.
"""

from __future__ import annotations

from itertools import pairwise, product
from math import gamma, pi, prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from align.exact import Check, Exact, Figure, Panel, furthest, relative

Row = dict[str, Any]  # a row of a table
Array = np.ndarray
HAND = "closed form, derived in the module"
SIMULATED = "a simulation made when the study was planned, good to about 0.02"
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)
NU, SCALE = 1.5, 0.5
CHANCE, LOSS, ADORED = 0.01, 2.0, 14.0
NATS = {2: 0.193, 4: 0.636, 16: 1.835, 64: 3.175, 1000: 5.909, 60000: 10.002}
PROMPTS, SAMPLES, DRAWN = 200, 256, (1, 4, 16, 64)  # n <= N / 4


class World(NamedTuple):
    """The proxy on a grid: its density and distribution, and density times the gold to expect there."""

    x: Array
    density: Array
    below: Array
    gold: Array


FIGURE = Figure(
    "The best of n answers as a reward model sees it, and what it is truly worth, in standard deviations of the true "
    "reward. What the reward model says of it rises with n by construction. The true reward follows for ever when the "
    "errors are normal, comes back to a random answer's when they have a heavy tail, and falls below it when there is "
    "a hole: one answer in a hundred that the reward model adores and that is bad.",
    (
        Panel("True reward falls with a heavy tail or a hole", "gold", "n", {"gold": ""},
              ("n, answers to choose from (logarithmic)", "true reward of the chosen, SD"), "error",
              {"light": "normal errors", "heavy": "a heavy tail", "extremal": "a hole"},
              log="x"),
    ),
)  # fmt: skip


def compute() -> Exact:
    from align.maths import best_of_n

    worlds = {"light": _light(), "heavy": _heavy(), "extremal": _extremal()}
    curves = {name: {n: _best(world, n) for n in LEVELS} for name, world in worlds.items()}
    rows: list[Row] = [
        {"error": name, "n": n, "kl": best_of_n.kl_bound(n), "gold": curves[name][n]} for name in curves for n in LEVELS
    ]
    drawn = [row for name in worlds for row in _drawn(name, curves[name])]
    checks = [*_light_checks(curves["light"]), *_heavy_checks(curves["heavy"]), *_extremal_checks(curves["extremal"])]
    checks += [
        Check(f"KL of the best of {n}", nats, best_of_n.kl_bound(n), 5e-4, "ln n - (n-1)/n, arXiv:2009.01325")
        for n, nats in NATS.items()
    ]
    checks += [_unbiased(n) for n in (1, 2, 3)]
    return Exact(tuple(checks), {"gold": rows, "drawn": drawn}, FIGURE)


def _best(world: World, n: int) -> float:
    """Expected gold of the best of n."""
    return float(np.trapezoid(n * world.below ** (n - 1) * world.gold, world.x))


def _light() -> World:
    from scipy.stats import norm

    x = np.linspace(-14, 14, 20_001)
    density = norm.pdf(x, scale=sqrt(2))
    return World(x, density, norm.cdf(x, scale=sqrt(2)), density * x / 2)


def _heavy() -> World:
    """X = G + s t by summing over a grid of G, which is exact to rounding for functions as smooth as these."""
    from scipy.stats import norm, t

    u = np.linspace(-30, 30, 3001)
    x = np.sinh(u)
    density, below, gold = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for g in np.arange(-9, 9.01, 0.1):
        weight = 0.1 * norm.pdf(g)
        at = weight * t.pdf(x - g, NU, scale=SCALE)
        density, gold = density + at, gold + g * at
        below = below + weight * t.cdf(x - g, NU, scale=SCALE)
    stretch = np.cosh(u)  # the integral is over u
    return World(u, density * stretch, below, gold * stretch)


def _extremal() -> World:
    from scipy.stats import norm

    x = np.linspace(-14, 24, 20_001)
    common, adored = (1 - CHANCE) * norm.pdf(x, scale=sqrt(2)), CHANCE * norm.pdf(x, ADORED)
    below = (1 - CHANCE) * norm.cdf(x, scale=sqrt(2)) + CHANCE * norm.cdf(x, ADORED)
    return World(x, common + adored, below, common * x / 2 - LOSS * adored)


def _maximum(n: int) -> float:
    """Expected maximum of n standard normals."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return quad(lambda z: n * z * norm.pdf(z) * norm.cdf(z) ** (n - 1), -10, 10, points=(0, 2, 4), limit=200)[0]


def _light_checks(curve: dict[int, float]) -> list[Check]:
    off = furthest((_maximum(n) / sqrt(2), gold) for n, gold in curve.items())
    rises = [b > a for a, b in pairwise(curve.values())]
    return [
        Check("light: gold of the best of n, at the n where it is furthest off", *off, 1e-6, HAND),
        Check("light: gold of the best of 4096", 2.57, curve[4096], 0.01, SIMULATED),
        Check("light: steps of n at which gold rises", len(rises), sum(rises), 0, HAND),
    ]  # fmt: skip


def far_out(n: int) -> float:
    """What heavy errors leave of gold for large n."""
    K = gamma((NU + 1) / 2) / (sqrt(NU * pi) * gamma(NU / 2))
    C = SCALE**NU * K * NU ** ((NU - 1) / 2)
    return (NU + 1) * gamma(1 + 1 / NU) * (n * C) ** (-1 / NU)


def _heavy_checks(curve: dict[int, float]) -> list[Check]:
    top = max(curve, key=lambda n: curve[n])
    falls = [curve[b] < curve[a] for a, b in pairwise(n for n in curve if n >= top)]
    return [
        relative("heavy: gold of the best of 4096", far_out(4096), curve[4096], 0.002, HAND),
        relative("heavy: gold of the best of 65536", far_out(65536), curve[65536], 0.0002, HAND),
        Check("heavy: steps of n beyond its top at which gold falls", len(falls), sum(falls), 0, HAND),
        Check("heavy: gold of the best of 16", 0.94, curve[16], 0.02, SIMULATED),
        Check("heavy: gold of the best of 4096, in the simulation", 0.05, curve[4096], 0.02, SIMULATED),
    ]


def _extremal_checks(curve: dict[int, float]) -> list[Check]:
    none = {n: (1 - CHANCE) ** n for n in curve}
    off = furthest((none[n] * _maximum(n) / sqrt(2) - (1 - none[n]) * LOSS, gold) for n, gold in curve.items())
    return [
        Check("extremal: gold of the best of n, at the n where it is furthest off", *off, 1e-6, HAND),
        Check("extremal: gold of the best of 65536 is that of what the proxy adores", -LOSS, curve[65536], 1e-6, HAND),
    ]


def _unbiased(n: int) -> Check:
    """The estimator's mean over every sample of five out of three answers, against the chance of each to be best."""
    import torch

    from align.maths import best_of_n

    chances, gold = (0.5, 0.3, 0.2), torch.tensor([1.0, 5.0, -2.0], dtype=torch.float64)  # in the proxy's order
    upto = (0.0, 0.5, 0.8, 1.0)
    expected = sum(float(gold[i]) * (upto[i + 1] ** n - upto[i] ** n) for i in range(3))
    index = torch.tensor(list(product(range(3), repeat=5)))
    weights = torch.tensor([prod(chances[i] for i in row) for row in index.tolist()], dtype=torch.float64)
    found = float(weights @ best_of_n.expected_best(index.double(), gold[index], n))
    return Check(f"mean of the estimator of the best of {n} over all samples of 5", expected, found, 1e-12, HAND)


def _drawn(name: str, curve: dict[int, float]) -> list[Row]:
    """The estimator on a pool as a study has one: 200 prompts with 256 samples each."""
    import torch

    from align.maths import best_of_n

    random = np.random.default_rng(0)
    size = (PROMPTS, SAMPLES)
    gold = random.normal(size=size)
    error = SCALE * random.standard_t(NU, size) if name == "heavy" else random.normal(size=size)
    proxy = gold + error
    if name == "extremal":
        adored = random.random(size) < CHANCE
        proxy, gold = np.where(adored, ADORED + random.normal(size=size), proxy), np.where(adored, -LOSS, gold)
    proxies, golds = torch.from_numpy(proxy), torch.from_numpy(gold)
    found = {n: best_of_n.expected_best(proxies, golds, n) for n in DRAWN}
    errors = {n: float(estimates.std()) / sqrt(PROMPTS) for n, estimates in found.items()}
    return [
        {"error": name, "n": n, "gold": curve[n], "drawn": float(estimates.mean()), "standard error": errors[n]}
        for n, estimates in found.items()
    ]
