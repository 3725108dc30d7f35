"""A gold scale that changes nothing: raw component scores count as they are, and length not at all."""

from __future__ import annotations

from reward_models.annotator import WEIGHTS, GoldScale


def plain_scale(sd_gold: float = 1.0) -> GoldScale:
    """Gold is con + 0.7 rel + 0.4 end of an answer that neither repeats itself nor is longer than 1,000 tokens."""
    zeros, ones = dict.fromkeys(WEIGHTS, 0.0), dict.fromkeys(WEIGHTS, 1.0)
    return GoldScale(zeros, ones, p10=0, p90=1000, mean_length=0, slope=0.0, sd_gold=sd_gold, sd_length=20.0)
