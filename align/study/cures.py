"""Mitigations of a trained study: what each takes away of the effect, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from align.study import rules
from align.study.judged import Arms, Judged, metric_of, observed, unit
from align.study.rules import Observed
from align.study.spec import START, Cure, Study


@dataclass(frozen=True)
class Cured:
    """A mitigation: what it does to the effect, and what it costs, in its own seeds. `works` is None where no effect is
    shown that it could cure."""

    arm: str
    removal: Judged
    removed: float | None  # share of the effect
    cost: Judged
    works: bool | None


def cures(study: Study, arms: Arms, main: Judged, shown: bool) -> tuple[Cured, ...]:
    """Each mitigation against the arm it cures, on the effect and on the cost; the removals are a family for Holm.

    `shown`: the study confirms its claim. The effect is that of the mitigation's own seeds: the share of another one
    would mix what seeds differ in into what the mitigation does.
    """
    cure = study.cure
    if cure is None:
        return ()
    removals, costs, shares = {}, {}, {}
    cost = metric_of(cure.cost.metric)
    allowed = cure.cost.margin * unit(cure.cost.of, cost, arms[cure.arm])
    ill, dear = observed(arms[cure.arm], main.metric), observed(arms[cure.arm], cost)
    for name in study.of_role("mitigation"):
        treated = observed(arms[name], main.metric)
        effect = _effect(study, cure, arms, main, treated)
        removal = rules.effect(treated, ill, 1 if effect > 0 else -1, cure.removes * abs(effect))
        removals[name] = removal
        shares[name] = removal.effect / effect if removal.effect is not None and effect else None
        costs[name] = rules.no_loss(observed(arms[name], cost), dear, allowed)
    made = []
    for name, removal in rules.corrected(removals).items():
        works = removal.outcome == rules.CONFIRMED and costs[name].outcome == rules.EQUIVALENT
        takes = Judged(name, main.metric, name, cure.arm, removal,
                       rules.by_seed(observed(arms[name], main.metric), ill))  # fmt: skip
        asks = Judged(name, cost, name, cure.arm, costs[name], rules.by_seed(observed(arms[name], cost), dear))
        made.append(Cured(name, takes, shares[name], asks, works if shown else None))
    return tuple(made)


def _effect(study: Study, cure: Cure, arms: Arms, main: Judged, treated: Observed) -> float:
    """What a cure would have to add to the ill arm, in the seeds of what was treated."""
    primary = study.primary
    assert primary is not None
    other = cure.well or (primary.base if cure.arm == primary.treated else primary.treated)
    ill = observed(arms[cure.arm], main.metric)
    well = observed(arms[cure.arm], main.metric, 0) if other == START else observed(arms[other], main.metric)
    away = rules.contrast(*({seed: row for seed, row in one.items() if seed in treated} for one in (well, ill)))
    return away.mean if away else 0.0
