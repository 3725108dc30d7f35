from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from reward_models.annotator import (
    Answer,
    GoldScale,
    components,
    fit_scale,
    gold,
    gold_components,
    gold_source,
    relevance,
    rep3,
)
from reward_models.base import RewardError, Sample, evaluate

INFO = {
    "topic": "volcanoes",
    "words": ("volcan*",),
    "keywords": ("lava", "erupt*", "ash"),
    "constraint": "one_sentence",
    "argument": None,
}
SCALE = GoldScale(
    means={"con": 0.5, "rel": 0.5, "end": 0.5, "rep": 0.0, "len_hinge": 0.0},
    sds={"con": 0.5, "rel": 0.5, "end": 0.5, "rep": 0.1, "len_hinge": 0.1},
    p10=10,
    p90=50,
    mean_length=30,
    slope=0.01,
    sd_gold=1.0,
    sd_length=20.0,
)


def answer(text: str = "Volcanoes erupt lava and ash.", tokens: int = 30, finished: bool = True) -> Answer:
    return Answer(text, tokens, finished, INFO)


def pool(prompts: int = 40, samples: int = 8, seed: int = 0) -> list[list[Answer]]:
    """Answers of random length whose gold falls with length: long ones lose the constraint and the clean end."""
    rng = random.Random(seed)
    groups = []
    for _ in range(prompts):
        group = []
        for _ in range(samples):
            tokens = rng.randint(5, 80)
            text = " ".join(
                rng.choice(["lava", "hot", "red", "ash", "volcano", "the", "stone"]) for _ in range(tokens // 2)
            )
            text += rng.choice([".", "."] if tokens < 40 else [". And more.", ""])
            group.append(Answer(text, tokens, tokens < 75, INFO))
        groups.append(group)
    return groups


def test_relevance_is_half_the_topic_and_half_up_to_three_keywords():
    def rel(text: str) -> float:
        return relevance(text, ("volcan*",), ("lava", "erupt*", "ash", "magma"))

    assert rel("Cats purr.") == 0.0
    assert rel("VOLCANIC rock") == 0.5
    assert rel("Lava and lavas") == pytest.approx(1 / 6)  # one keyword, however often
    assert rel("A lavatory") == 0.0
    assert rel("Volcanoes: lava, an eruption, ashes") == 1.0
    assert rel("Volcanoes: lava, an eruption, ashes, magma") == 1.0  # saturated


def test_rep3_is_the_share_of_trigrams_seen_before():
    assert rep3("a b c d") == 0.0
    assert rep3("a b c a b c") == pytest.approx(1 - 3 / 4)  # abc bca cab abc
    assert rep3("no no no no no no") == pytest.approx(1 - 1 / 4)
    assert rep3("!!!!!!!!!!!!") == pytest.approx(1 - 1 / 10)
    assert rep3("two words") == 0.0


def test_components_of_a_good_answer():
    assert components(answer(), p10=10, p90=50) == {"con": 1.0, "rel": 1.0, "end": 1.0, "rep": 0.0, "len_hinge": 0.0}


def test_repetition_costs_nothing_up_to_a_tenth_and_one_per_tenth_beyond():
    looped = answer("no no no no no no")  # rep3 .75
    assert components(looped, 10, 50)["rep"] == pytest.approx(-6.5)


def test_the_length_hinge_is_flat_inside_and_linear_outside():
    hinge = {n: components(answer(tokens=n), 10, 50)["len_hinge"] for n in (10, 30, 50, 6, 54, 90)}
    assert hinge == pytest.approx({10: 0, 30: 0, 50: 0, 6: -0.1, 54: -0.1, 90: -1.0})


def test_a_truncated_answer_has_no_clean_end():
    assert components(answer(finished=False), 10, 50)["end"] == 0.0


def test_gold_is_the_weighted_sum_of_clipped_z_scores():
    # con, rel and end are each one SD above their mean: 1.0 + 0.7 + 0.4
    assert gold(answer(), SCALE) == pytest.approx(2.1)
    # constraint kept: +1.0; off topic: -0.7; no clean end: -0.4; rep is 65 SDs below its mean and clipped to 3: -3.0
    assert gold(answer("no no no no no no"), SCALE) == pytest.approx(1.0 - 0.7 - 0.4 - 3.0)


@pytest.mark.parametrize(
    ("name", "weight"), [("con", 1.0), ("rel", 0.7), ("end", 0.4), ("rep", 1.0), ("len_hinge", 0.5)]
)
def test_one_sd_of_a_component_is_worth_its_weight_and_more_than_three_are_worth_three(name, weight):
    """The scale is moved below a fixed answer: the component then lies so many SDs above its mean."""

    def at(z: float) -> float:
        raw = components(answer(), SCALE.p10, SCALE.p90)[name]
        return gold(answer(), replace(SCALE, means=SCALE.means | {name: raw - z * SCALE.sds[name]}))

    assert at(1.0) - at(0.0) == pytest.approx(weight)
    assert at(2.9) - at(0.0) == pytest.approx(2.9 * weight)
    assert at(3.0) == pytest.approx(at(7.0))
    assert at(-3.0) == pytest.approx(at(-7.0))


def test_the_length_correction_pays_slope_per_token_inside_the_base_range_only():
    at = {n: gold(answer(tokens=n), SCALE) for n in (20, 30, 50, 51)}
    assert at[20] - at[30] == pytest.approx(10 * SCALE.slope)
    assert at[30] - at[50] == pytest.approx(20 * SCALE.slope)
    hinge_z = -(1 / 40) / 0.1
    assert at[51] - at[50] == pytest.approx(0.5 * hinge_z)  # beyond p90 only the hinge is left


def test_gold_is_uncorrelated_with_length_within_prompts_of_the_base_pool():
    groups = pool()
    scale = fit_scale(groups)
    products = 0.0
    raw = 0.0
    for group in ([a for a in group if a.finished] for group in groups):
        tokens = np.array([a.tokens for a in group], dtype=float)
        score = np.array([gold(a, scale) for a in group])
        products += float((tokens - tokens.mean()) @ score)
        clipped = np.clip(tokens, scale.p10, scale.p90)
        raw += float((tokens - tokens.mean()) @ (score + scale.slope * clipped))
    assert products == pytest.approx(0, abs=1e-4)
    assert raw < -100  # what the correction took away


def test_the_scale_holds_the_statistics_of_the_pool():
    groups = pool()
    scale = fit_scale(groups)
    everything = [a for group in groups for a in group]
    con = [components(a, scale.p10, scale.p90)["con"] for a in everything]
    assert scale.means["con"] == pytest.approx(np.mean(con))
    assert scale.sds["con"] == pytest.approx(np.std(con))
    assert (scale.p10, scale.p90) == pytest.approx(np.percentile([a.tokens for a in everything], [10, 90]))
    scores = [np.array([gold(a, scale) for a in group if a.finished]) for group in groups]
    variance = sum(((s - s.mean()) ** 2).sum() for s in scores) / sum(len(s) - 1 for s in scores)
    assert scale.sd_gold == pytest.approx(np.sqrt(variance))


def test_a_component_that_never_varies_keeps_a_floor_under_its_sd():
    assert fit_scale(pool()).sds["rep"] >= 0.03


def test_equal_pools_give_equal_digests_and_json_gives_the_scale_back():
    scale = fit_scale(pool())
    assert fit_scale(pool()).digest() == scale.digest()
    assert fit_scale(pool(seed=1)).digest() != scale.digest()
    assert GoldScale.from_json(scale.to_json()) == scale
    assert replace(scale, slope=scale.slope + 1e-6).digest() != scale.digest()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"means": {}}'])
def test_a_damaged_scale_is_refused(text):
    with pytest.raises(RewardError, match="not a gold scale"):
        GoldScale.from_json(text)


def test_a_pool_that_cannot_carry_a_scale_is_refused_with_the_reason():
    cut = [[replace(a, finished=False) for a in group] for group in pool()]
    with pytest.raises(RewardError, match="no prompt with two finished answers.*max_new_tokens"):
        fit_scale(cut)
    with pytest.raises(RewardError, match="no scale of length"):
        fit_scale([[replace(a, tokens=9) for a in group] for group in pool()])
    with pytest.raises(RewardError, match="neither in length nor in gold"):
        fit_scale([[group[0]] * 8 for group in pool()])


def test_the_gold_source_is_a_reward_and_reports_its_components():
    sample = Sample("p", "Volcanoes erupt lava and ash.", (1,), tuple(range(30)), True, INFO)
    assert evaluate("gold", gold_source(SCALE), [sample, sample]) == pytest.approx([2.1, 2.1])
    assert gold_components(sample, SCALE) == pytest.approx(
        {"con": 1.0, "rel": 1.0, "end": 1.0, "rep": 0.0, "len_hinge": 0.0, "gold": 2.1}
    )


def test_gold_of_a_prompt_that_is_not_the_annotators_is_an_error():
    sample = Sample("p", "7", (1,), (2,), True, {"answer": 7})
    with pytest.raises(RewardError, match="data=annotator"):
        gold_source(SCALE)([sample])
