"""Everything a comparison has found, as numbers and sentences: what page, Markdown, CSV and terminal show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.report import checks, diagnostics, levels, metrics, pairs, tables
from align.report.arms import Arm, SeedRun


@dataclass(frozen=True)
class Findings:
    arms: Sequence[Arm]
    left_out: Sequence[SeedRun]
    kl: metrics.Metric
    warnings: Sequence[str]
    summaries: Sequence[tables.Summary]
    pairs: Sequence[pairs.Pair]
    matched: Sequence[levels.Matched]  # at one KL, at one number of generated tokens
    fired: Sequence[diagnostics.Fired]

    @property
    def trained(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.trained]


def examine(arms: Sequence[Arm], left_out: Sequence[SeedRun]) -> Findings:
    kl = metrics.kl_metric(arms)
    matched = [table for table in (levels.at_matched_kl(arms, kl), levels.at_matched_tokens(arms)) if table.levels]
    return Findings(
        arms,
        left_out,
        kl,
        checks.warnings(arms, left_out),
        tables.summarise(arms, kl),
        pairs.pairs(arms, kl),
        matched,
        diagnostics.diagnose(arms),
    )
