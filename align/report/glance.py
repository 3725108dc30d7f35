"""At a glance: five questions that a reader of a comparison has, answered in sentences with numbers and intervals.

A direction is named only where `claims.py` decides so. What is not shown is said to be not shown, never "equal".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.report import matched
from align.report.arms import Arm, differing
from align.report.claims import Claim, judged
from align.report.findings import Findings
from align.report.inference import seed_difference
from align.report.levels import paths
from align.report.metrics import KL_BOUND, LENGTH, TRUNCATED, Metric, kl_of, primary
from align.report.stats import Estimate, t_interval
from align.report.tables import Summary
from align.report.text import config_value, listing, number

MANY = 6  # with more arms than this an answer names extremes only
KEYS = 4


@dataclass(frozen=True)
class Answer:
    question: str
    lines: tuple[str, ...]
    link: str  # id of the section that shows it
    where: str


def glance(found: Findings) -> list[Answer]:
    """The answers that this comparison can give, in the order in which a reader asks."""
    many = len(found.trained) > 1
    answers = [_drift(found) if many else _moved(found), _length(found), _real(found)]
    answers += [_changed(found)] if many else []
    return [answer for answer in (*answers, _wrong(found)) if answer.lines]


def _drift(found: Findings) -> Answer:
    """Where each arm stands when it first reaches the highest value of the primary metric that all of them reach."""
    metric = primary(found.trained)
    title = metric.title if metric else "gold reward"
    question = f"Which arm drifted furthest for the same {title}?"
    answer = ("frontier-gold", "reward against KL") if title == "gold reward" else ("figures", "figures")
    if metric is None:
        return Answer(question, ("Cannot be said: the arms share no gold score, verifier or reward.",), "matched", "")
    by_arm = [(arm, matched.swapped(paths(arm, found.kl, metric))) for arm in found.trained]
    risen = [(arm, own) for arm, own in by_arm if own and all(max(x for x, _ in p) > p[0][0] for p in own.values())]
    left = [arm.label for arm, _ in by_arm if arm not in [other for other, _ in risen]]
    without = f"{_few(left)} did not rise above the start in every seed." if left else ""
    level = max(matched.levels([own for _, own in risen]), default=None) if len(risen) > 1 else None
    if level is None:
        why = f"Cannot be said: no {title} above their starts is reached by every seed of two arms."
        return Answer(question, (f"{why} {without}".strip(),), *answer)
    costs = [(arm, matched.values_at(own, level)) for arm, own in risen]
    costs.sort(key=lambda pair: -_mean(pair[1]).mean)
    shown = costs if len(costs) <= MANY else [costs[0], costs[-1]]
    places = listing([f"{arm.label} {_with_interval(_mean(values), found.kl)}" for arm, values in shown])
    lines = [f"{title.capitalize()} {metric.show(level)} is the highest that {'these' if left else 'all'} arms reach. "
             f"KL in nats where each first got there: {places}.", _furthest(costs, found.kl)]  # fmt: skip
    return Answer(question, (*lines, *_untrained(found, metric, level), *([without] if without else [])), *answer)


def _untrained(found: Findings, metric: Metric, level: float) -> list[str]:
    """Where the baselines get there: what needs no training."""
    said = []
    for arm in found.arms:
        if not arm.trained:
            own = kl_of(arm, found.kl)
            there = matched.values_at(matched.swapped(paths(arm, own, metric)), level)
            bound = ", its bound" if own == KL_BOUND else ""
            said.append(f"{arm.label} at {_with_interval(_mean(there), own)}{bound}" if there else f"{arm.label} never")
    return [f"Without training, the start model gets there: {'; '.join(said)}."] if said else []


def _furthest(costs: Sequence[tuple[Arm, dict[str, float]]], kl: Metric) -> str:
    """The arm with the largest KL against each other arm; one family."""
    (first, own), others = costs[0], costs[1:]
    claims = judged({n: (kl, seed_difference(own, values)) for n, (_, values) in enumerate(others)})
    decided = [arm.label for n, (arm, _) in enumerate(others) if (claim := claims[n]) and claim.decided]
    if len(decided) == len(others):
        return f"{first.label} drifted furthest" + (
            f" ({_sure(claims[0])})." if len(others) == 1 else ", of all of them."
        )
    if decided:
        return f"{first.label} drifted further than {_few(decided)}; against the others it is not shown."
    widest = claims[len(others) - 1]
    if widest is None or widest.difference.low is None:
        return f"Whether {first.label} really drifted furthest cannot be said from one seed."
    return f"Which drifted furthest is not shown: {first.label} minus {others[-1][0].label} is {_sure(widest)}."


def _moved(found: Findings) -> Answer:
    lines = []
    for arm, summary in _trained(found):
        end, metric = summary.end[found.kl.key], primary([arm])
        claim = summary.change.get(metric.key) if metric else None
        lines += [f"{_with_interval(end, found.kl)} nats from the start at step {arm.end}."] if end else []
        lines += [f"{claim.metric.title.capitalize()}: {_change(claim)}."] if claim else []
    return Answer("How far did it move, and for what?", tuple(lines), "summary", "summary")


def _length(found: Findings) -> Answer:
    claims = [(arm, summary, claim) for arm, summary in _trained(found) if (claim := summary.change[LENGTH.key])]
    if len(claims) > MANY:
        words = [("longer", [a.label for a, _, c in claims if c.word == "higher"]),
                 ("shorter", [a.label for a, _, c in claims if c.word == "lower"]),
                 ("not shown to change", [a.label for a, _, c in claims if not c.decided])]  # fmt: skip
        lines = [f"{len(names)} of {len(claims)} arms {word}: {_few(names)}." for word, names in words if names]
        top = max(claims, key=lambda each: each[2].difference.mean)
        lines.append(f"Largest change: {top[0].label}, {_change(top[2], LENGTHS)}.")
        return Answer("Did length grow?", tuple(lines), "length-step", "length against step")
    lines = [f"{_who(found, arm)}{_change(claim, LENGTHS)}{_cut(summary.end[TRUNCATED.key])}."
             for arm, summary, claim in claims]  # fmt: skip
    return Answer("Did length grow?", tuple(lines), "length-step", "length against step")


LENGTHS = {"higher": "longer by", "lower": "shorter by"}


def _cut(truncated: Estimate | None) -> str:
    """A mean that the limit bounds says less."""
    if truncated is None or truncated.mean < 0.05:
        return ""
    return f"; {TRUNCATED.show(truncated.mean)} are cut off at the limit, which bounds this mean"


def _real(found: Findings) -> Answer:
    metric = primary(found.trained)
    if len(found.trained) == 1:
        lines = [f"{claim.metric.title.capitalize()}: {_change(claim)}."
                 for _, summary in _trained(found) for claim in summary.change.values() if claim]  # fmt: skip
        return Answer("Is that change real?", tuple(lines), "summary", "summary")
    claims = [(pair, claim) for pair in found.pairs if metric and (claim := pair.claim(metric))]
    if len(claims) > MANY:
        decided = [(pair, claim) for pair, claim in claims if claim.decided]
        claims = sorted(decided, key=lambda each: -abs(each[1].difference.mean))[:2]
    lines = [f"{pair.arm.label} against {pair.other.label}, {claim.metric.title}: {_change(claim)}."
             for pair, claim in claims]  # fmt: skip
    every = [(pair, row.claim) for pair in found.pairs for row in pair.rows]
    held = [f"{claim.metric.title} {claim.word} in {pair.arm.label} than in {pair.other.label}"
            for pair, claim in every if claim.decided]  # fmt: skip
    if every:
        which = f": {'; '.join(held)}" if 0 < len(held) <= KEYS else ""
        hold = f"{len(held)} hold{'s' * (len(held) == 1)}"
        one = ", on these prompts of one seed" if any(claim.decided and claim.by_prompts for _, claim in every) else ""
        lines.append(
            f"Of {len(every)} differences between arms at the end, {hold} after Holm's correction{one}{which}."
        )
    return Answer("Is that difference real?", tuple(lines), "pairs", "arm against arm")


def _changed(found: Findings) -> Answer:
    arms = found.trained
    keys = differing([arm.config for arm in arms])
    told = [key for key in keys if all(key in arm.config for arm in arms)]
    partial = [key for key in keys if key not in told]
    lines = []
    if "algo.name" in told:
        names = dict.fromkeys(config_value(arm.config["algo.name"]) for arm in arms)
        own = f", with {len(partial)} keys that not all of them have" if partial else ""
        lines.append(f"The algorithm: {_few([*names])}{own}.")
        told = [key for key in told if key not in ("algo.name", "algo.kind")]
    elif partial:
        lines.append(f"Not all of them have {_few(partial)}.")
    for key in told[:KEYS]:
        values = dict.fromkeys(config_value(arm.config[key]) for arm in arms)
        lines.append(f"{key}: {' → '.join(values) if len(arms) == 2 else _few([*values])}.")
    lines += [f"{len(told) - KEYS} more key{'s' * (len(told) > KEYS + 1)}."] if len(told) > KEYS else []
    lines += [] if told else ["Every key that all of them have is the same."]
    question = "What changed between these two arms?" if len(arms) == 2 else "What changed between these arms?"
    return Answer(question, tuple(lines), "differences", "what differs")


def _wrong(found: Findings) -> Answer:
    alarms = sorted((fired for fired in found.fired if fired.alarm), key=lambda fired: fired.step)
    earliest = list({fired.arm.style: fired for fired in reversed(alarms)}.values())[::-1]
    lines = [f"{_who(found, fired.arm)}step {fired.step}, {fired.what}{f' ({fired.where})' if fired.where else ''}."
             for fired in (earliest if len(earliest) <= MANY else earliest[:2])]  # fmt: skip
    silent = [arm.label for arm in found.trained if arm.style not in {fired.arm.style for fired in alarms}]
    if len(found.trained) == 1:
        lines += ["No alarm fired. That is no proof that all is well."] if silent else []
    elif silent:
        where = f"in {_few(silent)}" if alarms else "in any arm"
        lines += [f"No alarm fired {where}. That is no proof that all is well."]
    noted = [fired for fired in found.fired if not fired.alarm]
    if noted:
        first = min(noted, key=lambda fired: fired.step)
        kinds = listing(list(dict.fromkeys(fired.kind for fired in noted)))
        lines += [f"The runs themselves noted {kinds}, first at step {first.step} in {first.arm.label}."]
    failed = [f"{arm.label} seed {config_value(run.seed)}" for arm in found.trained for run in arm.seeds
              if run.record.state == "failed"]  # fmt: skip
    lines += [f"Failed: {_few(failed)}."] if failed else []
    return Answer(
        "Where did it start to go wrong?", tuple(lines) if found.trained else (), "diagnostics", "diagnostics"
    )


def _change(claim: Claim, words: dict[str, str] | None = None) -> str:
    """ "higher by 0.31 [0.12, 0.50] (3 seeds, 32 prompts)", or that it is not shown, and why."""
    if not claim.decided:
        return f"{claim.word}: {_sure(claim)}" if claim.difference.low is not None else f"{claim.word} ({claim.mean})"
    said = (words or {"higher": "higher by", "lower": "lower by"})[claim.word]
    low, high = claim.difference.low, claim.difference.high
    assert low is not None and high is not None
    size, edges = abs(claim.difference.mean), sorted((abs(low), abs(high)))
    unit = f" {claim.metric.unit}" if claim.metric.unit else ""
    one = "; another seed may differ" if claim.by_prompts else ""
    interval = claim.metric.interval(*edges, sign=False)
    shown = claim.metric.show(size, sign=True).removeprefix("+")  # a difference: of shares, in percentage points
    return f"{said} {shown} {interval}{unit} ({claim.basis}{one})"


def _sure(claim: Claim | None) -> str:
    """ "+0.12 [-0.10, 0.40] includes 0 at 3 seeds"."""
    if claim is None or claim.difference.low is None:
        return "one seed, no interval"
    low, high = claim.difference.low, claim.difference.high
    assert high is not None
    about = f"{claim.mean} {claim.interval}"
    if claim.decided:
        return f"{about}, p {claim.shown_p}"
    if low <= 0 <= high:
        return f"{about} includes 0 ({claim.basis})"
    return f"{about} leaves out 0, but p is {claim.shown_p} once corrected for {claim.family} comparisons"


def _mean(values: dict[str, float]) -> Estimate:
    return t_interval(list(values.values()))


def _with_interval(estimate: Estimate, metric: Metric) -> str:
    interval = metric.interval(estimate.low, estimate.high, sign=False)
    return f"{metric.show(estimate.mean)}{f' {interval}' if interval else ''}"


def _trained(found: Findings) -> list[tuple[Arm, Summary]]:
    return [(summary.arm, summary) for summary in found.summaries if summary.arm.trained]


def _who(found: Findings, arm: Arm) -> str:
    return f"{arm.label}: " if len(found.trained) > 1 else ""


def _few(words: Sequence[str]) -> str:
    return listing([*words] if len(words) <= KEYS else [*words[:KEYS], f"{number(len(words) - KEYS, 0)} more"])
