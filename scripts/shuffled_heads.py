"""How often a study of reward heads would confirm what a reward learned from coin flips shows: nothing.

200 times, heads are fitted to shuffled labels (data.labels.flips=0.5), each time to other pairs and other flips, with
the answers, rules and margins of study=rm_noise and as many seeds, and put where they must not be confirmed:

  control       in the place of the clean labels, against 40 % flipped: the study's own negative control
  gain          gold of the best of n against the start, by the margin of the study
  other flips   against the heads of the repeat before, with no margin at all: what intervals and seeds' signs let pass

Printed: outcomes, and the upper end of the 95 % interval of the share of CONFIRMED (Clopper & Pearson). It must be at
most 8 %. The numbers stand in docs/log.md. Overrides as for the study.
`python scripts/shuffled_heads.py [tier=cpu] [runs_root=runs] [KEY=VALUE ...]`
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scipy.stats import binomtest

from align.report.arms import Arm
from align.report.metrics import GOLD, prompt_values
from align.study import engine, rules, spec
from align.study.__main__ import parse
from align.study.engine import Task
from align.study.heads import Ground, judge, lay
from align.study.judged import unit
from align.study.spec import Contrast
from align.study.verdict import assemble

REPEATS, MOST, NO_MARGIN = 200, 0.08, 1e-9
STRIDE = 1000  # between the label seeds of one repeat and of the next


def main(arguments: Sequence[str]) -> int:
    options = parse(["study=rm_noise", *arguments])
    study = spec.load(spec.find("rm_noise"))
    assert study.primary is not None
    tier = options.tier or next(iter(study.tiers or {}))
    tasks = engine.expand(engine.plan(study, tier, None, options.extra, Path(options.runs_root).expanduser()))
    ground, counts = lay(tasks), dict[str, Counter[str]]()
    coins = [task for task in tasks if task.arm == "shuffled"]
    before = _arm(ground, coins, REPEATS)
    for repeat in range(REPEATS):
        shuffled = _arm(ground, coins, repeat)
        noisy = _arm(ground, [task for task in tasks if task.arm == study.primary.base], repeat)
        for name, outcome in _outcomes(study.primary, shuffled, noisy, before):
            counts.setdefault(name, Counter())[outcome] += 1
        before = shuffled
        ground.taught.labelled.clear()
    return _say(counts)


def _outcomes(primary: Contrast, shuffled: Arm, noisy: Arm, others: Arm) -> Iterator[tuple[str, str]]:
    margin = primary.margin * unit(primary.of, GOLD, shuffled)
    ends = [prompt_values(arm, arm.end, GOLD) for arm in (shuffled, noisy, others)]
    yield "control", rules.effect(ends[0], ends[1], 1, margin).outcome
    yield "gain", rules.effect(ends[0], prompt_values(shuffled, 0, GOLD), 1, margin).outcome
    yield "other flips", rules.effect(ends[0], ends[2], 1, NO_MARGIN).outcome


def _say(counts: Mapping[str, Counter[str]]) -> int:
    worst = 0.0
    for name, found in counts.items():
        upper = binomtest(found[rules.CONFIRMED], REPEATS).proportion_ci(0.95, "exact").high
        worst = max(worst, upper)
        said = ", ".join(f"{outcome} {many}" for outcome, many in sorted(found.items()))
        print(f"{name:<12} {said}; CONFIRMED at most {upper:.1%} (95 %)")
    return 0 if worst <= MOST else 2


def _arm(ground: Ground, tasks: Sequence[Task], block: int) -> Arm:
    """An arm whose labels have seeds that no other block has."""
    runs = []
    for task in tasks:
        data = task.experiment.data
        labels = replace(data.labels, seed=STRIDE * block + task.seed)
        experiment = replace(task.experiment, data=replace(data, labels=labels))
        runs.append(judge(ground, replace(task, experiment=experiment)))
    return assemble({tasks[0].arm: runs})[tasks[0].arm]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
