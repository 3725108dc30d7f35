"""A reward of the tests' own, as a user would write one: `reward.formula=tests.end_to_end.bandit:even`."""

from __future__ import annotations

import random
from collections.abc import Sequence

from reward_models.base import Sample


def even(samples: Sequence[Sample]) -> list[float]:
    """Share of the completion's tokens with an even id: about a half for a random policy, 1 at best, 0 at worst."""
    return [sum(token % 2 == 0 for token in s.completion_ids) / len(s.completion_ids) for s in samples]


def letter(samples: Sequence[Sample]) -> list[float]:
    """Share of the completion's tokens that are one certain token: 1/261 for a random policy, 1 at best."""
    return [s.completion_ids.count(70) / len(s.completion_ids) for s in samples]


def noisy(samples: Sequence[Sample]) -> list[float]:
    """`even`, and a draw from the global random stream, as a careless reward makes."""
    return [value + random.random() for value in even(samples)]
