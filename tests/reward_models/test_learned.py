from __future__ import annotations

from reward_models.base import Sample, weighted_sum
from reward_models.learned import LearnedReward


def test_a_learned_reward_scores_prompt_and_completion_ids_as_one_sequence():
    asked = []

    def score_tokens(sequences):
        asked.extend(sequences)
        return [float(len(ids)) for ids in sequences]

    samples = [Sample("p", "c", (1, 2), (3, 4, 5), True, {}), Sample("p", "", (1, 2), (5,), True, {})]
    total, components = weighted_sum({"learned": (2.0, LearnedReward(score_tokens))}, samples)
    assert asked == [(1, 2, 3, 4, 5), (1, 2, 5)]
    assert components == {"learned": [5.0, 3.0]}
    assert total == [10.0, 6.0]
