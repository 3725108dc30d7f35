from __future__ import annotations

from collections import Counter

from reward_models.instructions import WORDINGS, prompt_specs, split_topics
from reward_models.topics import TOPICS
from reward_models.verifiers import CONSTRAINTS, includes_word

SPECS = prompt_specs()


def test_sixty_topics_under_seven_constraints_give_420_prompts():
    assert len(TOPICS) == len({topic.name for topic in TOPICS}) == 60
    assert len(SPECS) == len({spec.id for spec in SPECS}) == len({spec.text for spec in SPECS}) == 420
    assert Counter(spec.info["constraint"] for spec in SPECS) == {kind: 60 for kind in CONSTRAINTS}


def test_topics_are_split_42_9_9_and_never_shared():
    assert Counter(split_topics().values()) == {"train": 42, "valid": 9, "eval": 9}
    assert Counter(spec.split for spec in SPECS) == {"train": 294, "valid": 63, "eval": 63}
    sides = {(spec.info["topic"], spec.split) for spec in SPECS}
    assert len(sides) == 60


def test_prompts_are_the_same_every_time_and_any_prefix_mixes_topics_and_constraints():
    assert prompt_specs() == SPECS
    first = SPECS[:32]
    assert len({spec.info["topic"] for spec in first}) >= 20
    assert len({spec.info["constraint"] for spec in first}) == 7


def test_prompts_are_short_and_say_what_they_ask():
    for spec in SPECS:
        assert len(spec.text.split()) <= 40
        assert "{" not in spec.text
        if spec.info["argument"] is not None:
            assert str(spec.info["argument"]) in spec.text


def test_every_wording_is_used():
    for kind, wordings in WORDINGS.items():
        beginnings = {wording.partition("{")[0] for wording in wordings} - {""}
        texts = [spec.text for spec in SPECS if spec.info["constraint"] == kind]
        assert all(any(text.startswith(beginning) for text in texts) for beginning in beginnings)


def test_every_topic_has_four_to_eight_keywords_apart_from_its_constraint_words():
    for topic in TOPICS:
        assert 4 <= len(topic.keywords) <= 8, topic.name
        assert topic.question.endswith("?")
        for word in (*topic.words, *topic.keywords):
            stem = word.removesuffix("*")
            # A word that is asked for, or forbidden, must not also count towards relevance.
            assert not topic.include.startswith(stem), (topic.name, word)
            assert not includes_word(stem, topic.include)
