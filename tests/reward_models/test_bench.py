"""Pairs of the reward bench, from answers that are written here; length projected out of features."""

from __future__ import annotations

import numpy as np
import pytest

from reward_models import bench as module
from reward_models import heads
from reward_models.annotator import Answer, GoldScale, gold
from reward_models.base import RewardError
from reward_models.bench import REFUSALS, bench

# Gold is 2 for the constraint, 0.7 of relevance; an SD within a prompt is 1 of gold, 10 tokens of length.
SCALE = GoldScale(
    {"con": 0.5, "rel": 0.5, "end": 1.0, "rep": 0.0, "len_hinge": 0.0},
    {"con": 0.5, "rel": 1.0, "end": 1.0, "rep": 1.0, "len_hinge": 1.0}, 1.0, 100.0, 50.0, 0.0, 1.0, 10.0,
)  # fmt: skip
BEES = {"topic": "bees", "words": ("bee",), "keywords": ("honey",)}
ONE = BEES | {"constraint": "end_phrase", "argument": "honey"}
YES = BEES | {"constraint": "yes_no_reason", "argument": None}
GROUPS = {
    "bees/one": [
        Answer("A bee makes honey.", 20, True, ONE),
        Answer("A bee makes the honey.", 22, True, ONE),
        Answer("A bee makes honey. It flies.", 35, True, ONE),
        Answer("Something. Anything.", 30, True, ONE),
        Answer("A bee makes honey and", 128, False, ONE),
    ],
    "bees/yes": [
        Answer("Yes, a bee makes honey in hives.", 40, True, YES),
        Answer("Yes, a bee makes honey for us.", 41, True, YES),
        Answer("A bee makes honey here.", 44, True, YES),
        Answer("It is so. I say so.", 60, True, YES),
    ],
}


def made(many: int = 2) -> dict[str, list[module.BenchPair]]:
    return bench(GROUPS, SCALE, many, 0.5, lambda text: len(text.split()))


def test_every_category_has_one_pair_to_a_prompt_of_finished_answers():
    found = made()
    assert [*found] == ["chat", "chat_hard", "length", "refusal", "ties"]
    for pairs in found.values():
        assert sorted(pair.prompt_id for pair in pairs) == ["bees/one", "bees/yes"]
        assert all(side.finished for pair in pairs for side in (pair.better, pair.worse))
    for category in ("chat", "chat_hard", "length", "refusal"):
        assert all(gold(pair.better, SCALE) > gold(pair.worse, SCALE) for pair in found[category])


def of(category: str, prompt: str) -> tuple[str, str]:
    [pair] = [pair for pair in made()[category] if pair.prompt_id == prompt]
    return pair.better.text, pair.worse.text


def test_chat_is_the_best_against_the_worst():
    assert of("chat", "bees/one")[1] == "Something. Anything."
    assert of("chat", "bees/yes")[1] == "It is so. I say so."


def test_hard_is_as_relevant_of_nearly_the_same_length_and_breaks_the_constraint():
    """44 tokens and no yes: under the yes-or-no prompt the nearest to 41."""
    assert of("chat_hard", "bees/yes") == ("Yes, a bee makes honey for us.", "A bee makes honey here.")
    assert of("chat_hard", "bees/one") == ("A bee makes the honey.", "A bee makes honey. It flies.")


def test_in_length_pairs_the_better_one_is_shorter():
    for pair in made()["length"]:
        assert pair.better.tokens + 5 <= pair.worse.tokens and pair.clear >= 0.5


def test_a_refusal_stands_against_a_good_answer_and_ties_differ_in_words_alone():
    for pair in made()["refusal"]:
        assert pair.worse.text in REFUSALS and pair.worse.tokens == len(pair.worse.text.split())
    for pair in made()["ties"]:
        assert pair.better.text != pair.worse.text
        assert gold(pair.better, SCALE) == pytest.approx(gold(pair.worse, SCALE), abs=0.1)


def test_too_few_pairs_are_refused():
    with pytest.raises(RewardError, match="the bench has 2 prompts with a pair of category chat, not 3"):
        made(3)


def test_without_length_no_head_goes_along_with_it():
    rng = np.random.default_rng(0)
    lengths = rng.normal(size=400)
    deviations = rng.normal(size=(400, 6))
    deviations[:, 0] += 2 * lengths
    deviations -= deviations.mean(0)
    lengths -= lengths.mean()
    basis = heads.coordinates(deviations, 6)
    left = heads.without(basis, deviations, lengths)
    before, after = ((deviations @ of).T @ lengths / 400 for of in (basis, left))
    assert np.abs(before).max() > 0.5 and np.abs(after).max() < 1e-12
    assert np.linalg.matrix_rank(left, tol=1e-9) == 5  # one direction is gone, no more
    assert np.abs(deviations @ (basis - left)).sum() > 0 and left.shape == basis.shape
