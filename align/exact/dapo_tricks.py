"""DAPO's four changes to GRPO, each as the number it moves (arXiv:2503.14476).

dynamic sampling  A group of G answers with success probability p has equal rewards, and so no gradient, with chance
                  z = p^G + (1-p)^G. Three draws at most leave z^3, at 1 + z + z^2 prompts drawn for each kept.
clip-higher       With A > 0 the gradient ends where the ratio passes 1 + high: one rollout can take a token from p to
                  (1 + high) p at most. 0.01 becomes 0.012 with 0.2, 0.0128 with 0.28; 0.9 is not bounded at all
                  (1.08 > 1): the clip bounds exploration, not exploitation. Downwards it is 1 - low for both.
token loss        One denominator for all tokens: an answer weighs as much as it is long. Of 20 and 80 tokens, the long
                  one has 0.8 of the step; with GRPO's mean of means each has half.
overlong ramp     The penalty grows over the last share c of the limit L: at T tokens clip((T - (1-c)L) / cL, 0, 1).
"""

from __future__ import annotations

from math import comb
from types import SimpleNamespace
from typing import Any

from align.exact import Check, Exact, Figure, Panel, furthest
from align.exact.rollouts import algorithm, gradient, made, targets

Row = dict[str, Any]  # a row of a table
HAND = "closed form, derived in the module"
PAPER = "arXiv:2503.14476"
CHANCES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
PRINTED = {4: 0.656, 8: 0.430, 16: 0.185}  # G -> share without a signal at p = 0.1
LIMIT, LENGTHS = (
    20480,
    (1000, 16384, 17408, 18432, 19456, 20480),
)  # section 4.1: 16,384 tokens, and 4,096 to slow down in
PENALTIES = (0.0, 0.0, 0.25, 0.5, 0.75, 1.0)
NO_CLIP = ("algo.minibatches=1", "algo.ratio.clip_low=null", "algo.ratio.clip_high=null")

FIGURE = Figure(
    "A group of G answers to one prompt teaches nothing when all are right or all are wrong. How often that happens, "
    "by the share p of answers that are right (solid), and how often it is left when a silent group is drawn again up "
    "to two times, as dynamic sampling does, from prompts of the same p (dashed).",
    (
        Panel("Groups without a signal: hard and easy prompts", "no signal", "p",
              {"share": "", "share after 3 draws": ", up to 3 draws"},
              ("p, success rate of the prompt", "share of groups without a signal"), "G",
              {G: f"G = {G}" for G in PRINTED}),
    ),
)  # fmt: skip


def compute() -> Exact:
    signals = [row for G in PRINTED for row in _signals(G)]
    clips = [_clip(name, sign) for name in ("ppo", "dapo") for sign in (1, -1)]
    weights = [_weights(name) for name in ("grpo", "dapo")]
    ramp = _ramp()
    checks = [*_signal_checks(signals), *_clip_checks(clips)]
    checks += [
        Check(f"{name}: share of the step of the 80-token answer beside one of 20", share, row["80 tokens"], 1e-9,
              f"{PAPER}, section 3.3")
        for (name, share), row in zip((("grpo", 0.5), ("dapo", 0.8)), weights, strict=True)
    ]  # fmt: skip
    checks += [
        Check(f"overlong penalty at {row['length']:g} of {LIMIT} tokens", expected, row["penalty"], 1e-9,
              f"{PAPER}, eq. 13")
        for expected, row in zip(PENALTIES, ramp, strict=True)
    ]  # fmt: skip
    return Exact(tuple(checks), {"no signal": signals, "clip": clips, "weights": weights, "ramp": ramp}, FIGURE)


def _signals(G: int) -> list[Row]:
    """Every group, by how many of its answers are right: is it silent to the estimator, and replaced by the loop?"""
    algo = algorithm("dapo", f"algo.group_size={G}")
    groups = [made([1] * G, [1.0] * right + [0.0] * (G - right)) for right in range(G + 1)]
    silent = [targets(group, algo, LIMIT).stats["group/zero_signal"] for group in groups]
    kept, drawn = _replaced(groups, G)
    rows = []
    for p in CHANCES:
        chances = [comb(G, right) * p**right * (1 - p) ** (G - right) for right in range(G + 1)]
        z = sum(chance * s for chance, s in zip(chances, silent, strict=True))
        speak = 1 - z
        rows.append({
            "G": G, "p": p, "share": z, "share by hand": p**G + (1 - p) ** G,
            "share after 3 draws": sum(z**i * (speak if i < 3 else 1) * k for i, k in enumerate(kept)),
            "drawn for each kept": sum(z**i * (speak if i < 3 else 1) * d for i, d in enumerate(drawn)),
        })  # fmt: skip
    return rows


def _replaced(groups: list, G: int) -> tuple[list[float], list[float]]:
    """The loop's dynamic sampling for one prompt at a time, when 0, 1, 2 and all 3 of its draws are silent.

    -> whether what it keeps is silent (1 or 0), prompts drawn
    """
    from align.trainers.on_policy import OnPolicyTrainer

    algo = algorithm("dapo", f"algo.group_size={G}", "algo.prompts_per_step=1")
    kept, drawn = [], []
    for failures in range(algo.max_draws + 1):
        answers = iter([groups[0]] * failures + [groups[1]] * algo.max_draws)
        loop = SimpleNamespace(algo=algo, answered=lambda *_, answers=answers: next(answers))
        stream = SimpleNamespace(next=lambda: ())
        rollout, stats = OnPolicyTrainer.sampled(loop, stream, 0, lambda **_: None)  # type: ignore[arg-type]
        kept.append(float(rollout.rewards.min() == rollout.rewards.max()))
        drawn.append(stats["group/drawn"])
    return kept, drawn


def _signal_checks(rows: list[Row]) -> list[Check]:
    z = {row["G"]: row["share"] for row in rows if row["p"] == 0.1}
    checks = [
        Check(f"p = 0.1: groups of {G} without a signal", printed, z[G], 5e-4, HAND) for G, printed in PRINTED.items()
    ]
    off = furthest((row["share by hand"], row["share"]) for row in rows)
    checks.append(Check("p^G + (1-p)^G, where it is furthest off", *off, 1e-12, HAND))
    after = furthest((row["share by hand"] ** 3, row["share after 3 draws"]) for row in rows)
    checks.append(Check("dynamic sampling: z^3 are left, where it is furthest off", *after, 1e-12, HAND))
    by_hand = [(1 + z + z**2, row) for row in rows for z in [row["share by hand"]]]
    drawn = furthest((expected, row["drawn for each kept"]) for expected, row in by_hand)
    return [
        *checks,
        Check("dynamic sampling: 1 + z + z^2 prompts drawn, where it is furthest off", *drawn, 1e-12, HAND),
    ]


def _clip(name: str, sign: int) -> Row:
    """The ratio at which the gradient ends, by bisection: beyond it one rollout cannot push a token further."""
    import torch
    from scipy.optimize import bisect

    from align.maths import policy

    ratio = algorithm(name).ratio

    def pushes(log_ratio: float) -> float:
        at = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
        advantage = torch.full((1, 1), float(sign), dtype=torch.float64)
        losses, _, _ = policy.clipped_surrogate(at, advantage, ratio.clip_low, ratio.clip_high, ratio.clip_dual)
        return 0.5 - float(torch.autograd.grad(losses.sum(), at)[0].abs() > 0)

    end = float(torch.tensor(bisect(pushes, 0.0, sign * 3.0, xtol=1e-13), dtype=torch.float64).exp())
    return {"algorithm": name, "advantage": sign, "ratio": end, "0.01 becomes": 0.01 * end, "0.9 becomes": 0.9 * end}


def _clip_checks(rows: list[Row]) -> list[Check]:
    of = {(row["algorithm"], row["advantage"]): row["ratio"] for row in rows}
    at = f"{PAPER}, section 3.1: 0.2 and 0.28"
    return [
        Check("clip 0.2: a probability of 0.01 becomes at most", 0.012, 0.01 * of["ppo", 1], 1e-9, at),
        Check("clip-higher: a probability of 0.01 becomes at most", 0.0128, 0.01 * of["dapo", 1], 1e-9, at),
        Check("clip 0.2: what falls falls to", 0.8, of["ppo", -1], 1e-9, at),
        Check("clip-higher: what falls falls to, as before", 0.8, of["dapo", -1], 1e-9, at),
    ]


def _weights(name: str) -> Row:
    """Share of the step's gradient with respect to the logprobs of an answer of 20 and one of 80 tokens, both right."""
    import torch

    off = () if name == "dapo" else ("algo.kl.where=none", "algo.kl.estimator=null", "algo.kl.coef=null")
    algo = algorithm(name, "algo.group_size=4", *NO_CLIP, *off)
    logprobs = torch.full((4, 80), -1.0, dtype=torch.float64, requires_grad=True)
    rollout = made((20, 80, 50, 50), (1.0, 1.0, 0.0, 0.0))
    found = gradient(logprobs, rollout, algo, LIMIT, logprobs).abs().sum(-1)
    short, long = float(found[0]), float(found[1])
    return {"algorithm": name, "20 tokens": short / (short + long), "80 tokens": long / (short + long)}


def _ramp() -> list[Row]:
    from align.trainers import estimators

    algo = algorithm("dapo")
    scores, _ = estimators.scored(made(LENGTHS, [0.0] * len(LENGTHS)), algo, estimators.Memory(None), LIMIT)
    return [{"length": n, "penalty": abs(float(score))} for n, score in zip(LENGTHS, scores, strict=True)]
