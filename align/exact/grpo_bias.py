"""Which prompts and which answers GRPO listens to, and that Dr. GRPO has neither preference.

Prompts. Of K answers a share p is right (reward 1), the others wrong. The rewards' variance is p (1 - p), so GRPO's
advantage is the centred one times 1 / sqrt(p (1 - p)): 3.33 at p = 0.1, 2 at p = 0.5. Expected over groups, the centred
advantage keeps (K - 1)/K of the policy gradient whatever p is: sum_i (r_i - mean r) r_i / K is a group's variance with
K in its denominator, whose mean is p (1 - p) (K - 1)/K, and p (1 - p) is the gradient of p with respect to its logit.
In small groups most prompts with p = 0.1 are silent, and little is left of the preference: see the table `groups`.

Tokens. With 1/T_i in front of the sum, an answer of T tokens gives each of them A / T: 80 tokens make each of them 4
times lighter than 20 do, so a long wrong answer is punished less per token. A constant in front gives all the same.
"""

from __future__ import annotations

from math import comb, sqrt
from typing import Any

from align.exact import Check, Exact, Figure, Panel, furthest, relative
from align.exact.rollouts import algorithm, gradient, made, targets

Row = dict[str, Any]  # a row of a table
PAPER = "arXiv:2503.20783, section 3.1: the std and the length in the denominators; closed form in the module"
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.98)
MANY = 1000  # answers, so that a share of them is as good as a probability
SIZES = (4, 8, 16, 64)
LENGTHS, REWARDS, LIMIT = (20, 80, 50, 50), (0.0, 0.0, 1.0, 1.0), 128  # two wrong answers, two right ones
AGGREGATES = {"grpo": 4.0, "dr_grpo": 1.0, "dapo": 1.0, "rloo": 1.0}  # algorithm -> how many times lighter at 80

FIGURE = Figure(
    "How much a prompt counts, by the share p of its answers that are right, with very many answers per prompt: "
    "dividing by the group's standard deviation (GRPO) makes very hard and very easy prompts count most. And of two "
    "wrong answers, one of 20 and one of 80 tokens, how many times harder a token of the short one is punished: "
    "dividing by the answer's length (GRPO) lets long mistakes off lightly.",
    (
        Panel("GRPO weighs the hardest and easiest prompts most", "prompts", "p",
              {"grpo": "GRPO: divided by the std", "dr_grpo": "Dr. GRPO: not divided"},
              ("p, success rate of the prompt", "weight of the prompt")),
        Panel("GRPO punishes a short mistake more per token", "tokens", "algorithm",
              {"short over long": ""}, ("", "weight of a token: 20-token over 80-token answer"),
              names={"grpo": "GRPO", "dr_grpo": "Dr. GRPO", "dapo": "DAPO", "rloo": "RLOO"}),
    ),
)  # fmt: skip


def compute() -> Exact:
    prompts = _prompts()
    groups = [row for K in SIZES for row in _expected(K)]
    tokens = [_tokens(name) for name in AGGREGATES]
    by_share = {row["p"]: row for row in prompts}
    checks = [
        relative(f"/std: weight of a prompt with p = {p:g}", 1 / sqrt(p * (1 - p)), by_share[p]["grpo"], 0.005, PAPER)
        for p in SHARES
    ]
    checks += [
        Check("no std: weight of p = 0.1 over that of p = 0.5", 1.0,
              by_share[0.1]["dr_grpo"] / by_share[0.5]["dr_grpo"], 1e-12, PAPER),
        relative("/std: weight of p = 0.1 over that of p = 0.5", 5 / 3, by_share[0.1]["grpo"] / by_share[0.5]["grpo"],
                 0.005, PAPER),
    ]  # fmt: skip
    checks += [
        Check(f"no std: share of the policy gradient in groups of {K}, at the p where it is furthest off",
              *furthest(((K - 1) / K, row["dr_grpo"]) for row in groups if row["K"] == K), 1e-12, PAPER)
        for K in SIZES
    ]  # fmt: skip
    checks += [
        Check(f"{row['algorithm']}: a token of the 20-token wrong answer over one of the 80-token one",
              AGGREGATES[row["algorithm"]], row["short over long"], 1e-9, PAPER)
        for row in tokens
    ]  # fmt: skip
    return Exact(tuple(checks), {"prompts": prompts, "groups": groups, "tokens": tokens}, FIGURE)


def _advantages(name: str, K: int, rights: list[int]) -> list[tuple[float, float]]:
    """Of a right and of a wrong answer, in groups of K of which so many are right. (Of one that is not there: any.)"""
    rewards = [float(i < right) for right in rights for i in range(K)]
    found = targets(made([1] * len(rewards), rewards), algorithm(name, f"algo.group_size={K}"), LIMIT).advantages
    return [(float(group[0]), float(group[-1])) for group in found[:, 0].view(-1, K)]


def _prompts() -> list[Row]:
    """Weight of a prompt: what its group's rewards, less their mean, are multiplied by."""
    rights = [round(p * MANY) for p in SHARES]
    found = {name: _advantages(name, MANY, rights) for name in ("grpo", "dr_grpo")}
    return [
        {"p": p, "1/sqrt(p(1-p))": 1 / sqrt(p * (1 - p)), **{name: a[i][0] / (1 - p) for name, a in found.items()}}
        for i, p in enumerate(SHARES)
    ]


def _expected(K: int) -> list[Row]:
    """Weights over all groups that may be drawn: E mean_i A_i (r_i - p), in units of p (1 - p). Silent groups count."""
    found = {name: _advantages(name, K, list(range(K + 1))) for name in ("grpo", "dr_grpo")}
    rows = []
    for p in SHARES:
        chances = [comb(K, right) * p**right * (1 - p) ** (K - right) for right in range(K + 1)]
        weights = {
            name: sum(
                chance * (right * a[right][0] * (1 - p) - (K - right) * a[right][1] * p) / K
                for right, chance in enumerate(chances)
            ) / (p * (1 - p))
            for name, a in found.items()
        }  # fmt: skip
        rows.append({"K": K, "p": p, **weights})
    return rows


def _tokens(name: str) -> Row:
    """Gradient of the step's loss with respect to the logprob of one token of each wrong answer."""
    import torch

    algo = algorithm(name, "algo.group_size=4", "algo.minibatches=1", "algo.ratio.clip_low=null",
                     "algo.ratio.clip_high=null", "algo.kl.where=none", "algo.kl.estimator=null",
                     "algo.kl.coef=null")  # fmt: skip
    logprobs = torch.full((len(LENGTHS), max(LENGTHS)), -1.0, dtype=torch.float64, requires_grad=True)
    found = gradient(logprobs, made(LENGTHS, REWARDS), algo, LIMIT, logprobs)
    short, long = float(found[0, 0]), float(found[1, 0])
    whole = {"20 tokens": float(found[0].sum()), "80 tokens": float(found[1].sum())}
    return {"algorithm": name, "short": short, "long": long, "short over long": short / long, **whole}
