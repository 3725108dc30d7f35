"""A learned reward model as a reward source. It receives a loaded scorer: nothing here knows how one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reward_models.base import Sample

ScoreTokens = Callable[[Sequence[tuple[int, ...]]], Sequence[float]]


@dataclass(frozen=True)
class LearnedReward:
    """r(x, y) = score_tokens(prompt ids + completion ids): the policy's own tokens, EOS included, nothing re-tokenised.

    `score_tokens` takes all sequences at once and returns one float each; how it batches them is its business.
    """

    score_tokens: ScoreTokens

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        return self.score_tokens([sample.prompt_ids + sample.completion_ids for sample in samples])
