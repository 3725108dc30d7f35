"""A panel of annotators: who they are on average, how far they disagree, and that each pair is one member's."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from reward_models.annotator import WEIGHTS, Answer, gold
from reward_models.labels import JITTER, LabelSettings, label_pairs, label_probability, panel
from tests.reward_models.scales import plain_scale

# Gold is con + 0.7 rel + 0.4 end; both answers below end cleanly and are equally long.
SCALE = plain_scale()
INFO = {"words": ("bee",), "keywords": ("honey", "wax", "pollen"), "constraint": "one_sentence", "argument": None}
KEPT = Answer("Nothing here.", 20, True, INFO)  # the constraint is kept, off topic: 1.0 + 0.4
ON_TOPIC = Answer("A bee makes honey. Also wax. Also pollen.", 20, True, INFO)  # the other way round: 0.7 + 0.4
SETTINGS = LabelSettings(pairs=10_000, annotators=13, sharpness=math.inf, flips=0.0, length_bias=0.0, seed=0)


def alike(prompts: int) -> dict[str, list[Answer]]:
    """The same two answers to every prompt."""
    return {f"p{i}": [KEPT, ON_TOPIC] for i in range(prompts)}


def various(prompts: int) -> dict[str, list[Answer]]:
    """Eight answers each, of four qualities and eight lengths."""
    texts = ["A bee makes honey {}.", "Bees {}. They fly. They sting", "Honey {}", "Nothing here {}."]
    answers = [Answer(texts[i % 4].format(f"w{i}"), 10 + 7 * i, True, INFO) for i in range(8)]
    return {f"p{i}": answers for i in range(prompts)}


def kept(pairs) -> list[bool]:
    """Whether the answer that keeps its constraint was chosen, pair by pair."""
    return [pair.chosen == KEPT for pair in pairs]


@pytest.mark.parametrize("seed", range(3))
def test_one_annotator_alone_is_gold_itself_to_the_last_bit(seed):
    assert panel(1, seed) == (WEIGHTS,)


@pytest.mark.parametrize("annotators", [2, 13])
def test_members_differ_and_their_mean_is_gold(annotators):
    members = panel(annotators, 0)
    assert len({tuple(weights.values()) for weights in members}) == annotators
    assert all(weight > 0 for weights in members for weight in weights.values())
    for name, weight in WEIGHTS.items():
        assert np.mean([weights[name] for weights in members]) == pytest.approx(weight, rel=1e-12)
    assert panel(annotators, 0) == members != panel(annotators, 1)


def test_a_panels_mean_opinion_of_an_answer_is_its_gold():
    opinions = [gold(ON_TOPIC, SCALE, weights) for weights in panel(13, 0)]
    assert np.mean(opinions) == pytest.approx(0.7 + 0.4)
    assert np.std(opinions) > 0.1


def test_members_split_as_two_lognormal_weights_do():
    """The member prefers the kept constraint where 1.0 x > 0.7 x': with probability Phi(ln(1 / 0.7) / (0.6 sqrt 2))."""
    assert NormalDist().cdf(math.log(1 / 0.7) / (JITTER * math.sqrt(2))) == pytest.approx(0.663, abs=0.0005)
    pairs = label_pairs(alike(4000), SCALE, replace(SETTINGS, annotators=3000)).pairs
    chosen = kept(pairs)
    assert np.mean(chosen) == pytest.approx(0.663, abs=0.03)  # 3 SE of 3,000 members and of their mean
    differ = [a != b for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
    assert np.mean(differ) == pytest.approx(2 * 0.663 * 0.337, abs=0.04)  # two members of one couple; 3 SE of 2,000
    assert all(kept(label_pairs(alike(200), SCALE, replace(SETTINGS, annotators=1)).pairs))


def test_two_members_of_thirteen_agree_in_66_of_100_pairs_and_one_with_itself_in_71():
    """Simulated: gaps of three independent normal components, in SDs of gold. AlpacaFarm's two humans: 66."""
    rng, varying = np.random.default_rng(0), ("con", "rel", "end")
    unit = math.sqrt(sum(WEIGHTS[name] ** 2 for name in varying))
    noisy = replace(SETTINGS, sharpness=1.5)
    different, same = [], []
    for seed in range(200):
        first, second = panel(13, seed)[:2]
        for z in rng.normal(size=(200, 3)) * math.sqrt(2):
            gaps = [float(z @ [weights[name] for name in varying]) / unit for weights in (first, second, WEIGHTS)]
            p, q, r = (label_probability(gap, 0.0, noisy) for gap in gaps)
            different.append(p * q + (1 - p) * (1 - q))
            same.append(r * r + (1 - r) ** 2)
    assert np.mean(different) == pytest.approx(0.66, abs=0.01)
    assert np.mean(same) == pytest.approx(0.708, abs=0.004)


def test_each_pair_is_labelled_by_one_member_whom_the_seed_draws():
    labelled = label_pairs(various(300), SCALE, SETTINGS).pairs
    members = panel(13, 0)
    for pair in labelled:
        own = members[pair.annotator]
        assert gold(pair.chosen, SCALE, own) >= gold(pair.rejected, SCALE, own)
        assert pair.gold_margin == gold(pair.chosen, SCALE) - gold(pair.rejected, SCALE)
    counts = Counter(pair.annotator for pair in labelled)
    assert set(counts) == set(range(13)) and sum(counts.values()) == 1200
    assert max(counts.values()) < 92 + 3.5 * 9.2 and min(counts.values()) > 92 - 3.5 * 9.2  # sqrt(1200 / 13 * 12 / 13)
    assert any(pair.gold_margin < 0 for pair in labelled), "no member ever contradicted gold"
    assert len({pair.annotator for pair in labelled if pair.prompt_id == "p0"}) > 1
    assert label_pairs(various(300), SCALE, SETTINGS).pairs == labelled
    other = label_pairs(various(300), SCALE, replace(SETTINGS, seed=1)).pairs
    assert [pair.annotator for pair in other] != [pair.annotator for pair in labelled]


def test_a_panel_labels_the_same_couples_with_the_same_luck():
    def couples(pairs):
        return [(pair.prompt_id, frozenset((pair.chosen.text, pair.rejected.text))) for pair in pairs]

    one, many = (label_pairs(various(50), SCALE, replace(SETTINGS, annotators=n)).pairs for n in (1, 13))
    assert couples(one) == couples(many)
    # With every second label flipped opinions count for nothing: what is left is the luck of the draw.
    one, many = (label_pairs(various(50), SCALE, replace(SETTINGS, annotators=n, flips=0.5)).pairs for n in (1, 13))
    assert [pair.chosen for pair in one] == [pair.chosen for pair in many]
    assert label_pairs(various(50), SCALE, replace(SETTINGS, pairs=30)).pairs == tuple(
        label_pairs(various(50), SCALE, SETTINGS).pairs[:30]
    )
