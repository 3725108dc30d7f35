"""The annotator's prompts: every topic under every constraint, with wording picked by hash. 60 x 7 = 420.

Topics, not prompts, are split into train / valid / eval, by the rank of sha256(topic): nothing that a reward model or a
policy has seen about a topic helps it on the others.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reward_models.topics import TOPICS, Topic

SPLIT_SIZES = {"train": 42, "valid": 9, "eval": 9}  # topics; 294 / 63 / 63 prompts

# Several wordings, so that no constraint is recognised by one fixed sentence.
WORDINGS: dict[str, tuple[str, ...]] = {
    "one_sentence": (
        "In one sentence, explain {topic} to a child.",
        "Write exactly one sentence about {topic}.",
        "Tell me about {topic} in a single sentence.",
    ),
    "under_words": (
        "Tell me about {topic} in fewer than {argument} words.",
        "Describe {topic}. Use fewer than {argument} words.",
        "Write something short about {topic}, with fewer than {argument} words in all.",
    ),
    "include_word": (
        'Write two sentences about {topic} that include the word "{argument}".',
        'Use the word "{argument}" in two short sentences about {topic}.',
        'Tell me about {topic} in two sentences. Include the word "{argument}".',
    ),
    "avoid_word": (
        'Describe {topic} in two sentences without the word "{argument}".',
        'Tell me about {topic} in two sentences. Do not use the word "{argument}".',
        'Write two short sentences about {topic}, but never use the word "{argument}".',
    ),
    "bullets": (
        "List exactly {argument} short facts about {topic} as bullet points.",
        "Give me exactly {argument} bullet points about {topic}, at most five words each.",
        "Write exactly {argument} very short bullet points on {topic}.",
    ),
    "yes_no_reason": (
        "{question} Yes or no, and why?",
        "{question} Please say yes or no and explain why in one sentence.",
        'Start your answer with "Yes" or "No", then explain briefly. {question}',
    ),
    "end_phrase": (
        'Write one sentence about {topic} that ends with the word "{argument}".',
        'Write one sentence about {topic}. Its last word must be "{argument}".',
        'Tell me something about {topic} in one sentence, and end it with the word "{argument}".',
    ),
}

# What a 135M model can do, but not always. Tried on it at temperature 1: four bullets run into a cap of 128 tokens too
# often, and a closing phrase of several words is hardly ever written (0 of 25), one word now and then (4 of 28).
WORD_LIMITS = (20, 25, 30, 40)
BULLET_COUNTS = (2, 3)
LAST_WORDS = ("today", "life", "world", "day")


@dataclass(frozen=True)
class PromptSpec:
    """One prompt of the annotator. `info` is what the verifiers and the gold score read."""

    id: str  # "honey-bees/one_sentence"
    split: str  # train | valid | eval
    text: str
    info: Mapping[str, Any]  # topic, words, keywords, constraint, argument


@functools.cache
def prompt_specs() -> tuple[PromptSpec, ...]:
    """All 420 prompts, always the same, in the order of their ids' hashes (a prefix is a fair sample)."""
    sides = split_topics()
    specs = [_spec(topic, kind, sides[topic.name]) for topic in TOPICS for kind in WORDINGS]
    return tuple(sorted(specs, key=lambda spec: _hash(spec.id)))


def split_topics() -> dict[str, str]:
    """Topic name -> train | valid | eval: the topics ranked by sha256 of their name, then cut at 42 and 51."""
    ranked = sorted((topic.name for topic in TOPICS), key=_hash)
    sides = [split for split, size in SPLIT_SIZES.items() for _ in range(size)]
    return dict(zip(ranked, sides, strict=True))


def _spec(topic: Topic, kind: str, split: str) -> PromptSpec:
    name = f"{topic.name.removeprefix('the ').replace(' ', '-').lower()}/{kind}"
    argument = _argument(topic, kind)
    text = _pick(WORDINGS[kind], name).format(topic=topic.name, argument=argument, question=topic.question)
    info = {
        "topic": topic.name,
        "words": topic.words,
        "keywords": topic.keywords,
        "constraint": kind,
        "argument": argument,
    }
    return PromptSpec(name, split, text, info)


def _argument(topic: Topic, kind: str) -> int | str | None:
    """What the constraint is about: a number, a word, a phrase, or nothing."""
    if kind == "include_word":
        return topic.include
    if kind == "avoid_word":
        return topic.avoid
    options: dict[str, tuple[int | str, ...]] = {
        "under_words": WORD_LIMITS,
        "bullets": BULLET_COUNTS,
        "end_phrase": LAST_WORDS,
    }
    return _pick(options[kind], f"{topic.name}/{kind}/argument") if kind in options else None


def _pick(options: tuple[Any, ...], key: str) -> Any:
    return options[int(_hash(key), 16) % len(options)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
