"""How often 95 % intervals of a difference between arms hold the truth, in simulated arms in which it is known.

S seeds and 63 prompts each; the truth is the mean over all seeds and all prompts that could have been drawn. Compared:
Student's t over seeds, the plain bootstrap (rows and columns drawn as they are), the bootstrap of `align.compare`, and
the wider of that and t, which `align.compare` prints. Ten minutes; the table stands in docs/log.md.
`python scripts/coverage.py`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from align.report.inference import LEVEL, Difference, Interval, bootstrap, difference, student

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]  # seeds -> two arms, [seeds, PROMPTS] each
PROMPTS, SIMULATIONS, SEEDS = 63, 2000, (3, 5, 10)
EFFECT = 0.3
COMPLETIONS = 4  # per prompt, of the 0/1 outcomes


def additive(seed: float, prompt: float, rest: float) -> Draw:
    """Paired: all three effects normal, with these standard deviations."""

    def draw(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
        effects = seed * rng.normal(size=(S, 1)) + prompt * rng.normal(size=PROMPTS)
        shared = rng.normal(size=(S, PROMPTS))  # what pairing removes
        return EFFECT + effects + rest * rng.normal(size=(S, PROMPTS)) + shared, shared

    return draw


def equal_shares(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
    """Seeds and prompts contribute alike to the variance of the mean, whatever S: hardest for either interval alone."""
    return additive(float(np.sqrt(S / PROMPTS)), 1.0, 0.0)(rng, S)


def skewed(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
    """Prompt and seed effects exponential (skewness 2)."""
    effects = rng.exponential(1.0, size=PROMPTS) - 1 + rng.exponential(0.2, size=(S, 1)) - 0.2
    return EFFECT + effects + rng.normal(size=(S, PROMPTS)), np.zeros((S, PROMPTS))


def very_skewed(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
    """Prompt effects log-normal (skewness 6), seed effects exponential."""
    effects = rng.lognormal(size=PROMPTS) - np.exp(0.5) + rng.exponential(0.3, size=(S, 1)) - 0.3
    return EFFECT + effects + rng.normal(size=(S, PROMPTS)), np.zeros((S, PROMPTS))


def heavy_tailed(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
    """Everything Student's t with 3 degrees of freedom."""
    prompts, seeds = rng.standard_t(3, size=PROMPTS), 0.2 * rng.standard_t(3, size=(S, 1))
    return EFFECT + prompts + seeds + rng.standard_t(3, size=(S, PROMPTS)), np.zeros((S, PROMPTS))


def binary(base: float, seed: float) -> Draw:
    """Shares of 0/1 outcomes whose log-odds have a prompt effect in common, a seed effect and a shift in one arm."""

    def draw(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
        prompts = base + 1.5 * rng.normal(size=PROMPTS)
        moved = prompts + 1.0 + 0.5 * rng.normal(size=PROMPTS) + seed * rng.normal(size=(S, 1))
        odds = moved, np.broadcast_to(prompts, moved.shape)
        left, right = (rng.binomial(COMPLETIONS, 1 / (1 + np.exp(-odd))) / COMPLETIONS for odd in odds)
        return left, right

    return draw


def independent(rng: np.random.Generator, S: int) -> tuple[Array, Array]:
    """Unpaired: arms of unlike spread that share the prompts and no seed."""
    prompts, easier = rng.normal(size=PROMPTS), 0.5 * rng.normal(size=PROMPTS)
    left = EFFECT + prompts + easier + rng.normal(size=(S, 1)) + rng.normal(size=(S, PROMPTS))
    return left, prompts + 0.3 * rng.normal(size=(S, 1)) + rng.normal(size=(S, PROMPTS))


SETTINGS: dict[str, Draw] = {
    "seeds dominate": additive(1.0, 0.3, 1.0),
    "prompts dominate": additive(0.05, 1.0, 0.5),
    "both": additive(0.2, 1.0, 1.0),
    "equal shares, no rest": equal_shares,
    "rest only": additive(0.0, 0.0, 1.0),
    "skewed": skewed,
    "very skewed": very_skewed,
    "heavy tails": heavy_tailed,
    "0/1, common": binary(0.0, 0.3),
    "0/1, rare": binary(-4.0, 0.3),
    "0/1, seeds dominate": binary(0.0, 1.0),
    "unpaired": independent,
}


def plain_bootstrap(rng: np.random.Generator, layout: Sequence[Array], replicates: int = 1000) -> Interval:
    prompts = rng.multinomial(PROMPTS, np.full(PROMPTS, 1 / PROMPTS), size=replicates) / PROMPTS
    seeds = [rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=replicates) for part in layout]
    means = sum(((w / w.shape[1]) @ part * prompts).sum(1) for w, part in zip(seeds, layout, strict=True))
    return Interval(*(float(edge) for edge in np.quantile(means, [0.025, 0.975])), float("nan"), "plain bootstrap")


def covers(found: Interval | Difference | None, truth: float) -> bool:
    assert found is not None
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def as_values(arm: Array, first_seed: int = 0) -> dict[str, dict[str, float]]:
    return {str(first_seed + s): {str(x): float(v) for x, v in enumerate(row)} for s, row in enumerate(arm)}


def one_setting(name: str, S: int) -> list[float]:
    """Shares that hold the truth: t, plain bootstrap, bootstrap, the wider; then the wider's width relative to that of
    an interval that knows the true spread."""
    rng, draw, unpaired = np.random.default_rng(S), SETTINGS[name], name == "unpaired"
    truth = np.mean([np.subtract(*draw(rng, 100)).mean() for _ in range(5000)]) if "0/1" in name else EFFECT
    held, widths, means = [], [], []
    for _ in range(SIMULATIONS):
        left, right = draw(rng, S)
        layout = [left, -right] if unpaired else [left - right]
        t = student([part.mean(1) for part in layout], LEVEL, "seeds")
        alone = t, plain_bootstrap(rng, layout), bootstrap(layout, LEVEL)
        found = difference(as_values(left), as_values(right, 100 if unpaired else 0))
        held.append([covers(interval, truth) for interval in (*alone, found)])
        widths.append(found.high - found.low)
        means.append(found.mean)
    return [*np.mean(held, 0), np.mean(widths) / (2 * 1.96 * np.std(means))]


def one_seed() -> tuple[float, float]:
    """t over prompts with one seed: as a statement on this seed's policy, and as one on the algorithm."""
    rng, held = np.random.default_rng(1), []
    for _ in range(SIMULATIONS):
        own = EFFECT + 0.3 * rng.normal()
        found = difference(as_values(own + rng.normal(size=(1, PROMPTS))), as_values(np.zeros((1, PROMPTS))))
        held.append([covers(found, own), covers(found, EFFECT)])
    on_policy, on_algorithm = np.mean(held, 0)
    return on_policy, on_algorithm


def main() -> None:
    print("| setting | seeds | t | plain bootstrap | bootstrap | wider | width |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in SETTINGS:
        for S in SEEDS:
            *shares, width = one_setting(name, S)
            print(f"| {name} | {S} |", *(f"{100 * share:.1f} |" for share in shares), f"{width:.2f} |", flush=True)
    on_policy, on_algorithm = one_seed()
    print(f"\nOne seed, t over prompts: {on_policy:.1%} for this policy, {on_algorithm:.1%} for the algorithm.")


if __name__ == "__main__":
    main()
