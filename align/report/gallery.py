"""Which figures there are: titles, captions, axes. `figures.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev

from align.report.arms import Arm, SeedRun
from align.report.curves import CROWDED, Axis, Curve, Figure, Mark, Of, curves, of
from align.report.metrics import (
    CHOSEN,
    DISTINCT2,
    ENTROPY,
    GOLD,
    LENGTH,
    PROXY,
    REJECTED,
    SAMPLED,
    SECONDS,
    SELF_BLEU,
    STEP,
    TOKENS,
    Metric,
    kl_of,
    sample_value,
)
from align.report.text import one_line

FRONTIER, TRAINING, ANSWERS, COST = "Reward for KL", "During training", "Length and diversity", "Cost"
NAMES = ("frontier-gold", "frontier-proxy", "gap-step", "gold-step", "proxy-step", "accuracy-step", "kl-step",
         "length-step", "length-kl", "logprobs-step", "entropy-step", "distinct2-step", "self-bleu-step",
         "gold-tokens", "proxy-tokens", "accuracy-tokens", "gold-seconds", "proxy-seconds",
         "accuracy-seconds")  # fmt: skip
SPREAD = Metric("", "change since step 0", "standard deviations of the start's answers", 2)
REWARDS = ((GOLD, "gold"), (PROXY, "proxy"))


def figures(arms: Sequence[Arm], kl: Metric, marks: Sequence[Mark] = ()) -> list[Figure]:
    """The figures for which some arm has points, frontier first. Baselines stand where the x axis is KL."""
    trained = [arm for arm in arms if arm.trained]
    drawn = [_frontier(arms, kl, reward, name) for reward, name in REWARDS]
    drawn += [_gap(trained, marks)]
    drawn += [_by_step(trained, metric, name, marks) for metric, name in (*REWARDS, (SAMPLED, "accuracy"))]
    drawn += [_by_step(trained, kl, "kl", marks), _by_step(trained, LENGTH, "length", marks, ANSWERS)]
    drawn += [_length_for_kl(arms, kl), _logprobs(trained, marks)]
    for metric, name in ((ENTROPY, "entropy"), (DISTINCT2, "distinct2"), (SELF_BLEU, "self-bleu")):
        drawn.append(_by_step(trained, metric, name, marks, ANSWERS))
    for cost, what in ((TOKENS, "tokens"), (SECONDS, "seconds")):
        drawn.append(_cost(trained, cost, what))
    return [figure for figure in drawn if any(curve.style >= 0 or not trained for curve in figure.curves)]


def how_to_read(arms: Sequence[Arm]) -> str:
    """What the lines, bands and bars of all figures are."""
    if all(len(arm.seeds) == 1 for arm in arms):
        return "Each line is one run."
    if len(arms) > CROWDED:
        return "Lines are means over seeds; intervals are left out among so many arms and stand in the summary."
    whose = " that reached the last step" if any(len(arm.at_end) < len(arm.seeds) for arm in arms) else ""
    return (
        f"Lines are means over seeds{whose}, thin lines single seeds; bands, and bars at the end of a reward-KL path, "
        "are 95% t-intervals over seeds, cut at the frame."
    )


def _kl(kl: Metric) -> Axis:
    return Axis(kl, lambda arm, run, step: run.value(step, kl_of(arm, kl).key))


def _frontier(arms: Sequence[Arm], kl: Metric, reward: Metric, name: str) -> Figure:
    label = _proxy_label(arms) if reward is PROXY else reward.title
    caption = (
        f"The {reward.title} of each arm for how far it has moved from the reference: one point per probed step, "
        "joined in step order from step 0 (ring)."
    )
    found = curves(arms, _kl(kl), of(reward))
    return Figure(f"frontier-{name}", FRONTIER, f"{_capital(reward)} against KL", caption, kl.axis, label, found)


def _length_for_kl(arms: Sequence[Arm], kl: Metric) -> Figure:
    caption = "Mean length of each arm for how far it has moved from the reference, joined in step order from step 0."
    found = curves(arms, _kl(kl), of(LENGTH))
    return Figure("length-kl", ANSWERS, "Length against KL", caption, kl.axis, LENGTH.axis, found)


def _by_step(arms: Sequence[Arm], metric: Metric, name: str, marks: Sequence[Mark], group: str = TRAINING) -> Figure:
    what = _capital(metric)
    caption = f"{what} on the held-out probe prompts at each probed step."
    label = _proxy_label(arms) if metric is PROXY else metric.axis
    found = curves(arms, of(STEP), of(metric))
    return Figure(
        f"{name}-step", group, f"{what} during training", caption, STEP.title, label, found, marks=tuple(marks)
    )


def _gap(arms: Sequence[Arm], marks: Sequence[Mark]) -> Figure:
    """Proxy and gold have different scales: each in units of its own spread over the answers at step 0."""
    caption = (
        "How far proxy and gold reward have risen since step 0, each in standard deviations over the answers at step "
        "0: where the dashed line falls away from the solid one, the reward is being over-optimised."
    )
    found = _two(arms, Axis(SPREAD, _standardised(PROXY)), Axis(SPREAD, _standardised(GOLD)))
    return Figure(
        "gap-step", TRAINING, "Proxy and gold reward apart", caption, STEP.title, f"{SPREAD.title} (SD at the start)",
        found, ("proxy reward", "gold reward"), tuple(marks), zero=True,
    )  # fmt: skip


def _standardised(metric: Metric) -> Of:
    def value(_: Arm, run: SeedRun, step: int) -> float | None:
        start, now, spread = run.value(0, metric.key), run.value(step, metric.key), _spread(run, metric)
        return None if start is None or now is None or not spread else (now - start) / spread

    return value


def _spread(run: SeedRun, metric: Metric) -> float | None:
    """Standard deviation of a reward over the completions at step 0."""
    rows = run.samples.get(0, {}).values()
    values = [value for row in rows if (value := sample_value(row, metric.sample_field)) is not None]
    return pstdev(values) if len(values) > 1 else None


def _logprobs(arms: Sequence[Arm], marks: Sequence[Mark]) -> Figure:
    caption = (
        "Log-probability of held-out chosen and rejected answers relative to the reference: where both lines fall, "
        "the margin grows although the chosen answer becomes less likely (likelihood displacement)."
    )
    found = _two(arms, of(CHOSEN), of(REJECTED))
    return Figure(
        "logprobs-step", TRAINING, "Chosen and rejected answers", caption, STEP.title, CHOSEN.axis, found,
        ("chosen", "rejected"), tuple(marks), zero=True,
    )  # fmt: skip


def _two(arms: Sequence[Arm], first: Axis, second: Axis) -> tuple[Curve, ...]:
    """Both quantities of the arms that have both."""
    one, two = curves(arms, of(STEP), first), curves(arms, of(STEP), second, variant=1)
    both = {curve.style for curve in one} & {curve.style for curve in two}
    return tuple(curve for curve in (*one, *two) if curve.style in both)


def _cost(arms: Sequence[Arm], cost: Metric, what: str) -> Figure:
    """The first of gold, accuracy and proxy that some arm has, against what was spent."""
    spent = [
        arm for arm in arms if any((run.value(step, cost.key) or 0) > 0 for run in arm.seeds for step in run.probes)
    ]
    candidates = ((GOLD, "gold"), (SAMPLED, "accuracy"), (PROXY, "proxy"))
    metric, name = next((pair for pair in candidates if any(arm.logs(pair[0].key) for arm in arms)), candidates[0])
    silent = len(spent) < len(arms)
    sampled = "; arms that sample nothing while they train are not in it" if silent and cost is TOKENS else ""
    caption = {
        TOKENS: f"{_capital(metric)} for the tokens sampled in training{sampled}.",
        SECONDS: f"{_capital(metric)} for the time since the run began, probes included; comparable on one machine.",
    }[cost]
    label = _proxy_label(arms) if metric is PROXY else metric.axis
    found = curves(spent, of(cost), of(metric))
    return Figure(f"{name}-{what}", COST, f"{_capital(metric)} against {cost.title}", caption, cost.axis, label, found)


def _capital(metric: Metric) -> str:
    what = metric.title.split(",")[0]
    return what[0].upper() + what[1:]


def _proxy_label(arms: Sequence[Arm]) -> str:
    """ "proxy reward: learned - 0.01*length": the config's formula, where all that log the reward share it."""
    formulas = {arm.config.get("reward.formula") for arm in arms if arm.logs(PROXY.key)}
    if len(formulas) > 1:
        return f"{PROXY.title} (not the same in all arms)"
    formula = next(iter(formulas), None)
    return f"{PROXY.title}: {one_line(formula)}" if isinstance(formula, str) else PROXY.title
