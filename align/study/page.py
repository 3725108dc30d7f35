"""A study's page: question, verdict, figure, what was done, the cure, and what it does not show. One HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.report import checks, diagnostics, gallery
from align.report.arms import Arm
from align.report.curves import Figure
from align.report.metrics import Metric, kl_metric
from align.report.page import HERE as REPORT
from align.report.page import finalize, style
from align.report.stats import at_step, mean
from align.report.text import MISSING, number
from align.study import rules
from align.study.ends import Ends
from align.study.engine import Plan
from align.study.exact import Computed
from align.study.forest import forest
from align.study.judged import Judged, metric_of
from align.study.rules import Verdict
from align.study.settings import MODULES
from align.study.spec import Contrast, Study
from align.study.verdict import Found

HERE = Path(__file__).parent
# A word and a sign for each outcome: colour alone says nothing to some readers.
SIGNS = {rules.CONFIRMED: "✔", rules.REVERSED: "⇄", rules.EQUIVALENT: "≈", rules.INCONCLUSIVE: "?", rules.INVALID: "✖"}
MEANINGS = {
    rules.CONFIRMED: "What was found is what the claim says.",
    rules.REVERSED: "What was found goes against the claim. That is a result.",
    rules.EQUIVALENT: "Whatever difference there is, it is smaller than the margin that was declared to matter.",
    rules.INCONCLUSIVE: "These runs do not decide it. That is not the same as no effect.",
    rules.INVALID: "What was declared as a condition did not hold, so the numbers below decide nothing.",
}
RULES = {
    "effect": "the 95 % interval of the paired difference leaves out 0, the difference is at "
    "least the margin, and all seeds agree in sign",
    "equivalence": "the 90 % interval of the paired difference lies inside the margin on both sides",
    "dose": "the rank correlation over all levels has p below 0.05 in a permutation test, and the first and last level "
    "pass the rule of an effect: interval without 0, margin met, all seeds of one sign",
    "peak": "an interior best level, chosen on half of the prompts, is better than the last one on the other half, and "
    "a parabola fits better than any monotone curve tried",
}
# of a metric that has no value per prompt: other held-out prompts would have moved it too
ALONE = "over seeds alone"
TOLD = ("length/mean", "length/truncated", "reward/gold", "kl/exact", "policy/entropy", "text/distinct2", "text/rep3",
        "reward/proxy", "kl/bound", "rm/gold_accuracy", "rm/policy_accuracy", "rm/policy_drop", "bon/a",
        "bon/b", "bench/chat_hard", "bench/refusal", "bench/arithmetic", "bench/ties")  # fmt: skip
UNITS = {
    "absolute": "",
    "base_mean": " of the mean at step 0",
    "base_within_prompt_sd": " standard deviations within a prompt",
}


def render_arms(
    chosen: Plan, found: Found, drawn: Sequence[tuple[Figure, str]], ends: Sequence[tuple[Ends, str]] = ()
) -> str:
    """`drawn`: the gallery's figures with the <svg> element of each; `ends`: those of every arm."""
    arms, study = found.arms, chosen.study
    assert study.primary is not None and study.tiers is not None and study.overrides is not None
    styles = {name: arm.style for name, arm in arms.items()}
    beside = [found.primary, *found.controls, *(one.removal for one in found.cured)]
    own = [one.metric for one in (study.primary, *(study.secondary or {}).values())]
    told = {key: metric_of(key) for key in (*own, *TOLD) if any(arm.logs(key) for arm in arms.values())}
    starts = [warning for warning in checks.unequal_starts(list(arms.values())) if "start weights" in warning]
    return _template().render(
        **_head(study, found.verdict, found.primary.metric, found.screen),
        exact=None,
        command=_command(chosen),
        runs=[run.record.path for arm in arms.values() for run in arm.seeds] if study.kind == "trained" else [],
        told=told,
        what=MODULES[study.module].WHAT if study.module else None,
        table={name: {metric.key: _path(arm, metric) for metric in told.values()} for name, arm in arms.items()},
        chosen=chosen,
        found=found,
        styles=styles,
        forest=forest(beside, [styles[one.high] for one in beside]),
        rule=RULES[study.primary.rule],
        asked=asked(study.primary),
        warnings=[*starts, *checks.unequal_step_zero(list(arms.values()))],
        ends=[(figure, Markup(svg)) for figure, svg in ends],
        figures=[(figure, Markup(svg)) for figure, svg in drawn],
        how_to_read=gallery.how_to_read(list(arms.values())),
    )


def render_exact(study: Study, computed: Computed, panels: Sequence[str]) -> str:
    """`panels`: the <svg> elements of its figure."""
    command = f"python -m align.study study={study.name}"
    return _template().render(
        **_head(study, computed.verdict, None),
        exact=computed,
        panels=[Markup(svg) for svg in panels],
        command=command,
        warnings=[],
    )


def draw(found: Found) -> list[Figure]:
    """The comparison's own figures of these arms."""
    arms = list(found.arms.values())
    return gallery.figures(arms, kl_metric(arms), diagnostics.marks(diagnostics.diagnose(arms)))


def asked(one: Contrast) -> str:
    """The contrast in words: "length/mean of biased less that of unbiased"."""
    if one.along:
        return f"{one.metric} of {one.treated} over its steps, at the root of {one.along}"
    if one.levels:
        return f"{one.metric} over {', '.join(f'{arm} ({level:g})' for arm, level in one.levels.items())}"
    low = f"{one.treated} itself at step 0" if one.base == "start" else one.base
    return f"{one.metric} of {one.treated} less that of {low}{f', at step {one.at}' if one.at else ''}"


def sentence(verdict: Verdict, metric: Metric) -> str:
    """The effect with its interval: +9.8 tokens [+6.1, +13.4], 3 of 3 seeds, p = 0.004."""
    if verdict.effect is None:
        return ""
    unit = f" {metric.unit}" if metric.unit else ""
    interval = metric.interval(verdict.low, verdict.high)
    parts = [f"{metric.show(verdict.effect, sign=True)}{unit}{f' {interval}' if interval else ''}"]
    parts += [f"{verdict.agree} of {verdict.seeds} seeds have that sign"] if verdict.seeds > 1 else ["one seed"]
    parts += [ALONE] if verdict.low is not None and not verdict.prompts else []
    parts += [f"p {_p(verdict.p)}"] if verdict.p is not None else []
    parts += [f"margin {metric.show(verdict.margin)}"] if verdict.margin is not None else []
    return ", ".join(parts)


def shown(verdict: Verdict, screen: bool) -> str:
    """The outcome, or "INCONCLUSIVE (screen)"."""
    return f"{verdict.outcome} (screen)" if screen and verdict.outcome == rules.INCONCLUSIVE else verdict.outcome


def _command(chosen: Plan) -> str:
    seeds = (
        [f"seeds={','.join(map(str, chosen.seeds))}"] if chosen.seeds != (chosen.study.seeds or {})[chosen.tier] else []
    )
    return " ".join(
        [
            "python -m align.study",
            f"study={chosen.study.name}",
            f"tier={chosen.tier}",
            *seeds,
            *(f"{key}=..." for key in chosen.study.asks),
            *chosen.changes,
        ]
    )


def _path(arm: Arm, metric: Metric) -> str:
    """38.9 -> 47.2"""
    ends = (at_step(arm, 0, metric.key), at_step(arm, arm.end, metric.key))
    return f"{metric.show(mean(ends[0]))} → {metric.show(mean(ends[1]))}" if any(ends) else MISSING


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {number(p, 3)}"


def _head(study: Study, verdict: Verdict, metric: Metric | None, screen: bool = False) -> dict[str, Any]:
    head: dict[str, Any] = {"study": study, "verdict": verdict, "sign": SIGNS[verdict.outcome]}
    head["shown"] = shown(verdict, screen)
    return head | {"meaning": MEANINGS[verdict.outcome], "sentence": sentence(verdict, metric) if metric else ""}


def _cell(value: Any) -> str:
    """A number of a table as it is read: five digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}".replace("-", "−")
    return MISSING if value is None else str(value)


def _judged(one: Judged) -> str:
    return sentence(one.verdict, one.metric)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _template() -> Any:
    loader = ChoiceLoader([FileSystemLoader(HERE), FileSystemLoader(REPORT)])
    environment = Environment(
        loader=loader, autoescape=True, finalize=finalize, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    css = Markup((REPORT / "page.css").read_text("utf-8") + (HERE / "study.css").read_text("utf-8"))
    environment.globals |= {"style": style, "css": css, "signs": SIGNS, "units": UNITS}
    environment.globals |= {"missing": MISSING}
    environment.filters |= {"cell": _cell, "judged": _judged, "columns": _columns}
    return environment.get_template("study.html.j2")
