"""Labels, and the calibration table of the annotator: what sharpness, flips and length bias mean in per cent."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from reward_models.annotator import Answer
from reward_models.labels import LabelledPair, LabelSettings, label_pairs, label_probability, similarity
from tests.reward_models.scales import plain_scale

SCALE = plain_scale()
INFO = {"words": ("bee",), "keywords": ("honey",), "constraint": "one_sentence", "argument": None}


def settings(**changes: float) -> LabelSettings:
    asked = {"pairs": 10_000, "annotators": 1, "sharpness": 1.5, "flips": 0.0, "length_bias": 0.0, "seed": 0}
    return LabelSettings(**(asked | changes))


def half_normal(points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """|d| of a difference of two standard normals (SD sqrt 2), as equally likely quantiles."""
    rng = np.linspace(0, 8, points + 1)
    z = (rng[1:] + rng[:-1]) / 2
    weight = np.exp(-(z**2) / 2)
    return math.sqrt(2) * z, weight / weight.sum()


def agreement(**changes: float) -> float:
    """P(label agrees with gold) over pairs of standard-normal gold."""
    gaps, weights = half_normal()
    return sum(w * label_probability(gap, 0.0, settings(**changes)) for gap, w in zip(gaps, weights, strict=True))


def longer_chosen(bias: float) -> float:
    """P(the longer one is preferred) over pairs of independent standard-normal gold and length."""
    gaps, weights = half_normal(150)
    cases = settings(length_bias=bias)
    return sum(
        w * v * (label_probability(gap, longer, cases) + label_probability(-gap, longer, cases)) / 2
        for gap, w in zip(gaps, weights, strict=True)
        for longer, v in zip(gaps, weights, strict=True)
    )


def test_sharpness_one_and_a_half_agrees_with_gold_in_79_of_100_pairs():
    assert agreement() == pytest.approx(0.787, abs=0.001)


def test_two_raters_of_sharpness_one_and_a_half_agree_in_71_of_100_pairs():
    gaps, weights = half_normal()
    ps = [label_probability(gap, 0.0, settings()) for gap in gaps]
    assert sum(w * (p * p + (1 - p) ** 2) for p, w in zip(ps, weights, strict=True)) == pytest.approx(0.708, abs=0.001)


@pytest.mark.parametrize(("flips", "expected"), [(0.1, 0.729), (0.25, 0.643), (0.4, 0.557)])
def test_flips_pull_agreement_towards_one_half(flips, expected):
    assert agreement(flips=flips) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(("bias", "expected"), [(0.0, 0.5), (0.25, 0.541), (0.5, 0.581), (1.0, 0.653), (1.5, 0.710)])
def test_length_bias_chooses_the_longer_one(bias, expected):
    assert longer_chosen(bias) == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize(("bias", "expected"), [(0.35, 0.557), (0.6, 0.596), (0.85, 0.631)])
def test_these_length_biases_choose_the_longer_as_often_as_three_datasets_do(bias, expected):
    """Shares of pairs whose chosen answer is the longer one in the three datasets of arXiv:2310.03716."""
    assert longer_chosen(bias) == pytest.approx(expected, abs=0.002)


def test_infinite_sharpness_always_takes_the_better_and_leaves_ties_to_length():
    certain = settings(sharpness=math.inf, length_bias=1.0)
    assert label_probability(1e-9, -50.0, certain) == 1.0
    assert label_probability(-1e-9, 50.0, certain) == 0.0
    assert label_probability(0.0, 0.0, certain) == 0.5
    assert label_probability(0.0, 1.0, certain) == pytest.approx(1 / (1 + math.exp(-1)))
    assert label_probability(5.0, 0.0, settings(sharpness=math.inf, flips=0.1)) == pytest.approx(0.9)


def test_swapping_the_two_answers_gives_the_complement():
    noisy = settings(flips=0.2, length_bias=0.7)
    assert label_probability(0.4, -1.1, noisy) + label_probability(-0.4, 1.1, noisy) == pytest.approx(1.0)


def make_pool(prompts: int = 50, samples: int = 8) -> dict[str, list[Answer]]:
    """Sample i of a prompt has i + 1 tokens' difference and gold that alternates."""
    texts = ["A bee makes honey {}.", "Bees {}. They fly. They sting", "Honey {}", "Nothing here {}. Or there."]
    return {
        f"p{p}": [Answer(texts[i % 4].format(f"w{i}"), 10 + 7 * i, True, INFO) for i in range(samples)]
        for p in range(prompts)
    }


def test_at_most_four_pairs_per_prompt_and_no_answer_twice():
    labelled = label_pairs(make_pool(samples=12), SCALE, settings())
    assert len(labelled.pairs) == labelled.available == 200
    assert set(Counter(pair.prompt_id for pair in labelled.pairs).values()) == {4}
    used = [(pair.prompt_id, a.text) for pair in labelled.pairs for a in (pair.chosen, pair.rejected)]
    assert len(used) == len(set(used))


def test_few_pairs_come_from_different_prompts_and_are_part_of_more():
    few = label_pairs(make_pool(), SCALE, settings(pairs=50)).pairs
    more = label_pairs(make_pool(), SCALE, settings(pairs=120)).pairs
    assert len({pair.prompt_id for pair in few}) == 50
    assert more[:50] == few


def test_truncated_answers_are_never_labelled():
    pool = {
        name: [Answer(a.text, a.tokens, i >= 5, INFO) for i, a in enumerate(group)]
        for name, group in make_pool().items()
    }
    labelled = label_pairs(pool, SCALE, settings())
    assert labelled.available == 50  # three finished answers make one pair
    assert all(pair.chosen.finished and pair.rejected.finished for pair in labelled.pairs)


def test_identical_texts_are_left_out_and_counted():
    same = {"p": [Answer("Bees buzz.", 5, True, INFO)] * 4}
    labelled = label_pairs(same, SCALE, settings())
    assert (labelled.pairs, labelled.available, labelled.identical) == ((), 0, 2)


def test_another_seed_gives_other_pairings_and_labels_and_the_same_seed_the_same():
    one, again, other = (label_pairs(make_pool(), SCALE, settings(seed=s)).pairs for s in (0, 0, 1))
    assert one == again

    def couples(pairs):
        return {(pair.prompt_id, frozenset((pair.chosen.text, pair.rejected.text))) for pair in pairs}

    assert couples(one) != couples(other)
    common = couples(one) & couples(other)
    winners = [
        {(p.prompt_id, frozenset((p.chosen.text, p.rejected.text))): p.chosen.text for p in pairs}
        for pairs in (one, other)
    ]
    assert any(winners[0][couple] != winners[1][couple] for couple in common)


def test_arms_that_differ_in_the_label_model_label_the_same_couples():
    plain, biased = (label_pairs(make_pool(), SCALE, settings(length_bias=b)).pairs for b in (0.0, 1.5))
    assert [frozenset((p.chosen.text, p.rejected.text)) for p in plain] == [
        frozenset((p.chosen.text, p.rejected.text)) for p in biased
    ]
    changed = [(p, q) for p, q in zip(plain, biased, strict=True) if p.chosen != q.chosen]
    assert changed and all(q.chosen.tokens > q.rejected.tokens for _, q in changed)


def test_without_noise_gold_decides_and_with_one_half_flips_nothing_does():
    sure = label_pairs(make_pool(), SCALE, settings(sharpness=math.inf)).pairs
    assert all(pair.gold_margin >= 0 for pair in sure)
    coin = label_pairs(make_pool(400), SCALE, settings(sharpness=math.inf, flips=0.5)).pairs
    unequal = [pair.gold_margin > 0 for pair in coin if pair.gold_margin]
    assert np.mean(unequal) == pytest.approx(0.5, abs=0.06)  # 3 SE of 1,000 pairs


def test_similarity_counts_the_words_of_common_runs():
    assert similarity("a b c d", "a b c e") == similarity("a b c e", "a b c d") == 2 * 3 / 8
    assert (similarity("a b", "a b"), similarity("a b", "c")) == (1.0, 0.0)
    assert similarity("a x b", "b y a z") == similarity("b y a z", "a x b") == 2 * 1 / 7  # in one order, not as sets


def key(pair: LabelledPair) -> tuple[str, str, str]:
    return pair.prompt_id, pair.chosen.text, pair.rejected.text


def test_bands_of_similarity_part_the_pairs_and_leave_their_labels_alone():
    every = label_pairs(make_pool(), SCALE, settings(flips=0.3)).pairs
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    bands = [label_pairs(make_pool(), SCALE, settings(flips=0.3, similarity=band)) for band in pairwise(edges)]
    assert [len(band.pairs) for band in bands] == [band.available for band in bands] == [len(every) // 4] * 4
    assert {key(pair) for band in bands for pair in band.pairs} == {key(pair) for pair in every}
    alike = [[similarity(pair.chosen.text, pair.rejected.text) for pair in band.pairs] for band in bands]
    assert all(max(one) <= min(other) for one, other in pairwise(alike)) and alike[0] != alike[3]
