"""How much a baseline takes off the noise of REINFORCE, and what it costs in bias, by enumerating every batch.

Two prompts, k answers to each out of V, a policy softmax(theta) for each; the estimate is the mean over the batch's
answers of A_i d log p(y_i). With P prompts and r - b in place of A:

    none                b = 0                       unbiased
    leave-one-out       mean of the k - 1 siblings  unbiased: b does not depend on y_i, and E d log p = 0
    group mean          contains r_i / k            E = (1 - 1/k) of the gradient: the share of itself that it subtracts
    batch mean          contains r_i / (P k)        E = (1 - 1/(P k))
    true value          b = E r                     unbiased: what a perfect critic gives

Leave-one-out is the group mean times k/(k-1), so Var(group) = ((k-1)/k)^2 Var(leave-one-out).

By hand, for one prompt with a reward of 0 or 1 and d log p = r - p (a success logit): the leave-one-out estimate is
sum (r_i - mean r)^2 / (k - 1), the sample variance of r, so with m2 = p (1 - p), m4 = m2 (1 - 3 m2)

    E = m2, the gradient itself;     Var = (m4 - m2^2 (k - 3)/(k - 1)) / k;     without a baseline p (1 - p)^3 / k
"""

from __future__ import annotations

from itertools import pairwise, product
from math import factorial, prod
from typing import TYPE_CHECKING, Any

from align.exact import Check, Exact, Figure, Panel, furthest, relative

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]  # a row of a table
HAND = "closed form, derived in the module; RLOO: arXiv:2402.14740, section 2.3"
SIZES = (2, 4, 8)
POLICIES = ((0.5, 0.3, 0.2), (0.2, 0.2, 0.6))  # of each prompt, over three answers
REWARDS = ((1.0, 0.0, -1.0), (2.0, 3.0, 1.5))  # one prompt pays more than the other whatever is said
OFFSETS = (0.0, 1.0, 4.0)  # added to every reward: a reward model's zero is arbitrary
BASELINES = ("none", "batch mean", "group mean", "leave-one-out", "true value")
SUCCESS = (0.05, 0.1, 0.3, 0.5, 0.7)

NAMES = {name: name for name in BASELINES}
FIGURE = Figure(
    "Two prompts, three possible answers each, every batch enumerated. Noise: the variance of the policy gradient "
    "with 4 answers per prompt, when a constant is added to every reward. The constant says nothing about which "
    "answer is better, yet without a baseline it drowns the gradient. Bias: what is left of the gradient on average; "
    "a mean with the answer itself in it takes a part away.",
    (
        Panel("Noise: a baseline takes the offset out", "two prompts", "offset", {"variance": ""},
              ("added to every reward", "variance of the gradient"), "baseline", NAMES, {"k": 4}, log="y"),
        Panel("Bias: the answer must not be in its own mean", "two prompts", "k", {"scale": ""},
              ("k, answers per prompt", "share of the gradient left"), "baseline", NAMES, {"offset": 0.0}),
    ),
)  # fmt: skip


def compute() -> Exact:
    rows = [row for offset in OFFSETS for k in SIZES for row in _rows(k, offset)]
    coins = [_coin(p, k) for p in SUCCESS for k in SIZES]
    checks = [*_scales(rows), *_variances(rows)]
    checks += [
        Check(f"{what}, one coin, where it is furthest off",
              *furthest((coin[f"{what} by hand"], coin[what]) for coin in coins), 1e-12, HAND)
        for what in ("mean", "variance", "variance without")
    ]  # fmt: skip
    return Exact(tuple(checks), {"two prompts": rows, "one coin": coins}, FIGURE)


def advantages(name: str, rewards: Tensor, values: Tensor) -> Tensor:
    """A baseline by the product's function. rewards [prompts, k], the prompts' true values [prompts] -> [prompts, k]"""
    import torch

    from align.maths import advantages as ours

    if name == "batch mean":
        return ours.group_centered(rewards.view(1, -1)).view_as(rewards)
    if name in ("group mean", "leave-one-out"):
        return ours.GROUP[{"group mean": "group_centered", "leave-one-out": "leave_one_out"}[name]](rewards)
    # One token each: a reward to go, without a critic or less the value of one that is right.
    token, mask = rewards.reshape(-1, 1), torch.ones(rewards.numel(), 1, dtype=torch.bool)
    critic = values.repeat_interleave(rewards.shape[1]).unsqueeze(-1) * (name == "true value")
    return ours.gae(token, critic, mask, 1.0, 1.0).view_as(rewards)


def _groups(probs: tuple[float, ...], k: int) -> list[tuple[list[int], float]]:
    """Every group of k answers up to order, and its probability."""
    found = []
    for counts in product(range(k + 1), repeat=len(probs)):
        if sum(counts) == k:
            ways = factorial(k) / prod(map(factorial, counts))
            answers = [answer for answer, count in enumerate(counts) for _ in range(count)]
            found.append((answers, ways * prod(p**count for p, count in zip(probs, counts, strict=True))))
    return found


def _rows(k: int, offset: float) -> list[Row]:
    """Mean and variance of the gradient under each baseline, over all batches of two groups."""
    import torch

    p, r = (torch.tensor(x, dtype=torch.float64) for x in (POLICIES, REWARDS))
    r = r + offset
    values = (p * r).sum(-1)
    truth = p * (r - values.unsqueeze(-1)) / len(p)  # of the mean over prompts of E r, with respect to both thetas
    batches = list(product(_groups(POLICIES[0], k), _groups(POLICIES[1], k)))
    chances = torch.tensor([one[1] * other[1] for one, other in batches], dtype=torch.float64)
    found: dict[str, list[Tensor]] = {name: [] for name in BASELINES}
    scores = torch.eye(p.shape[1], dtype=torch.float64) - p.unsqueeze(1)  # [prompt, answer, theta]: d log p(answer)
    for (one, _), (other, _) in batches:
        answers = torch.tensor([one, other])
        rewards = r.gather(1, answers)
        score = scores[torch.arange(2).unsqueeze(-1), answers]  # [prompts, k, theta]
        for name in BASELINES:
            weights = advantages(name, rewards, values)
            found[name].append((weights.unsqueeze(-1) * score).sum(1) / answers.numel())
    rows = []
    for name, estimates in found.items():
        every = torch.stack(estimates)
        mean = (chances.view(-1, 1, 1) * every).sum(0)
        variance = float((chances * (every - mean).square().sum((1, 2))).sum())
        scale = float((mean * truth).sum() / truth.square().sum())
        rows.append({
            "baseline": name, "k": k, "offset": offset, "scale": scale,
            "off direction": float((mean - scale * truth).norm()), "variance": variance,
            "noise to signal": variance / float(mean.square().sum()),
        })  # fmt: skip
    return rows


def _scales(rows: list[Row]) -> list[Check]:
    """Of each baseline, at the k and offset where it is furthest off; the group mean, the claim itself, at each k."""
    by_hand = {"group mean": lambda k: 1 - 1 / k, "batch mean": lambda k: 1 - 1 / (2 * k)}
    checks = []
    for name in BASELINES:
        own = [row for row in rows if row["baseline"] == name]
        for ks in ([k] for k in SIZES) if name in ("group mean", "leave-one-out") else (list(SIZES),):
            expected = by_hand.get(name, lambda k: 1.0)
            curve = furthest((expected(row["k"]), row["scale"]) for row in own if row["k"] in ks)
            at = "" if len(ks) > 1 else f", k = {ks[0]}"
            checks.append(Check(f"{name}{at}: share of the gradient that is left", *curve, 1e-12, HAND))
    off = max(row["off direction"] for row in rows)
    return [*checks, Check("any baseline: what points elsewhere than the gradient", 0, off, 1e-12, HAND)]


def _variances(rows: list[Row]) -> list[Check]:
    of = {(row["baseline"], row["k"], row["offset"]): row["variance"] for row in rows}
    checks = [
        relative(f"variance: group mean over leave-one-out, k = {k}", ((k - 1) / k) ** 2,
                 of["group mean", k, 0.0] / of["leave-one-out", k, 0.0], 1e-9, HAND)
        for k in SIZES
    ]  # fmt: skip
    falls = [of["leave-one-out", a, 0.0] > of["leave-one-out", b, 0.0] for a, b in pairwise(SIZES)]
    checks.append(Check("steps of k at which leave-one-out varies less", len(falls), sum(falls), 0, HAND))
    apart = max(abs(of["leave-one-out", k, o] - of["leave-one-out", k, 0.0]) for k in SIZES for o in OFFSETS)
    return [*checks, Check("leave-one-out: what an offset of the rewards does to its variance", 0, apart, 1e-12, HAND)]


def _coin(p: float, k: int) -> Row:
    """One prompt, a reward of 0 or 1 with success probability p, d log p = r - p."""
    import torch

    values = torch.tensor([p], dtype=torch.float64)
    row: Row = {"p": p, "k": k}
    for name in ("none", "leave-one-out"):
        estimates, chances = [], []
        for answers, chance in _groups((1 - p, p), k):
            rewards = torch.tensor([answers], dtype=torch.float64)
            estimates.append(float((advantages(name, rewards, values) * (rewards - p)).mean()))
            chances.append(chance)
        mean = sum(c * g for c, g in zip(chances, estimates, strict=True))
        variance = sum(c * (g - mean) ** 2 for c, g in zip(chances, estimates, strict=True))
        row |= {"mean": mean, "variance": variance} if name == "leave-one-out" else {"variance without": variance}
    m2 = p * (1 - p)
    return row | {
        "mean by hand": m2,
        "variance by hand": (m2 * (1 - 3 * m2) - m2**2 * (k - 3) / (k - 1)) / k,
        "variance without by hand": p * (1 - p) ** 3 / k,
    }
