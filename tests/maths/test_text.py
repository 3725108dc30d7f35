"""Repetition and diversity of token sequences, by hand."""

from __future__ import annotations

import math

import pytest

from align.maths.text import distinct, repeated, self_bleu


def test_repetition_by_hand():
    assert repeated([1, 2, 3, 1, 2, 3]) == 1 / 4  # 123 231 312 123
    assert repeated([7] * 10) == 7 / 8
    assert repeated([1, 2, 3, 4]) == 0
    assert repeated([1, 2]) is None


def test_distinct_by_hand():
    assert distinct([[1, 2, 1, 2], [1, 2]]) == 2 / 4  # 12 21 12, 12
    assert distinct([[1], []]) is None


def test_equal_texts_have_a_self_bleu_of_1_and_texts_without_a_common_token_0():
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1)
    assert self_bleu([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]) == 0
    assert self_bleu([[1, 2], []]) is None


def test_self_bleu_by_hand():
    """1 2 3 4 against 1 2 5: precisions 2/4, (1+1)/(3+1), (0+1)/(2+1), (0+1)/(1+1), not short.

    1 2 5 against 1 2 3 4: 2/3, (1+1)/(2+1), (0+1)/(1+1), (0+1)/(0+1), short by exp(1 - 4/3).
    """
    first = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)
    second = math.exp(-1 / 3) * (2 / 3 * 2 / 3 * 1 / 2 * 1) ** (1 / 4)
    assert self_bleu([[1, 2, 3, 4], [1, 2, 5]]) == pytest.approx((first + second) / 2)


def test_matches_are_clipped_at_the_most_of_one_other_completion():
    """1 1 1 1 against 1 1 9 9 and 1 8 8 8: two of four tokens match, not three; (1+1)/(3+1) bigrams."""
    rows = [[1, 1, 1, 1], [1, 1, 9, 9], [1, 8, 8, 8]]
    alone = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)
    second = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)  # 1 1 of the first; 9 9 of nobody
    third = (1 / 4 * 1 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu(rows) == pytest.approx((alone + second + third) / 3)


def test_the_closest_length_decides_how_short_is_short_and_of_two_the_shorter():
    """Four tokens between three and five: not short. Three tokens: short of four by exp(1 - 4/3)."""
    rows = [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    first = math.exp(-1 / 3) * (1 * 1 * 1 * 1) ** (1 / 4)
    third = (4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4)
    assert self_bleu(rows) == pytest.approx((first + 1 + third) / 3)
