from __future__ import annotations

import time

import pytest

from reward_models.base import RewardError, Sample, evaluate
from reward_models.verifiers import (
    CONSTRAINTS,
    avoids_word,
    constraint_kept,
    ends_cleanly,
    ends_with,
    exactly_bullets,
    find_last_integer,
    includes_word,
    last_integer,
    length,
    one_sentence,
    terminated,
    under_words,
    yes_no_reason,
)


def sample(completion: str = "", ids: tuple[int, ...] = (5, 6, 2), finished: bool = True, **info: object) -> Sample:
    return Sample("a prompt", completion, (1, 2), ids, finished, info)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"),
        ("The answer is 12.", "12"),
        ("3 + 9 = 12", "12"),
        ("First 5, then 12", "12"),
        ("x = -4", "-4"),
        ("(-4)", "-4"),
        ("5*-4", "-4"),
        ("\u22124", "-4"),  # the typographic minus
        ("3-4", "4"),
        ("3 - 4", "4"),
        ("(3)-4", "4"),
        ("- 4", "4"),  # a bullet
        ("well--4", "4"),  # a dash
        ("pages 3\u20134", "4"),
        ("1,234", "1234"),
        ("1,234,567.", "1234567"),
        ("1,23", "23"),  # no thousands separator
        ("1, 2, 3", "3"),
        ("18.00", "18"),
        ("$18", "18"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("50%", "50"),
        ("5kg", "5"),
        ("**12**", "12"),
        ("__12__", "12"),
        (r"\boxed{12}", "12"),
        ("so...7", "7"),
        ("007", "7"),
        ("-0", "0"),
        ("#### 18", "18"),
        ("8 apples\n\n9", "9"),
        ("3/4", "4"),
        ("It is 7 (see H2O and Qwen2.5)", "7"),
        ("3.5", None),
        (".5", None),
        ("it has 3 parts, 3.5 in all", None),  # the last number is no integer
        ("1.2.3", None),
        ("seven", None),
        ("", None),
        ("\u0663", None),  # Arabic-Indic three
    ],
)
def test_last_integer_of(text, number):
    assert find_last_integer(text) == number


def test_the_reward_is_one_exactly_where_the_last_integer_is_the_answer():
    samples = [
        sample("3 + 4 = 7.", answer=7),
        sample("It is 7, no, 8.", answer=7),
        sample("-7", answer=-7),
        sample("7", answer="7"),
        sample("1234", answer="1,234"),
    ]
    assert last_integer(samples) == [1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("answer", [None, 3.5, True, "", "seven", "3.5", [7]])
def test_a_prompt_without_an_integer_answer_is_an_error_not_a_zero(answer):
    with pytest.raises(RewardError, match="integer in info"):
        last_integer([sample("7", answer=answer)])


def test_a_number_of_a_million_digits_is_compared_and_not_converted():
    assert last_integer([sample("9" * 1_000_000, answer=9)]) == [0.0]


HUGE = ["9", "1,", "1,111,", "1.", "a1.", "-", "-$", "_", ".", "a'", ". ", '." ', "*", " ", "\n", "- a\n", "yes ", "a "]


@pytest.mark.parametrize("unit", HUGE)
def test_huge_completions_take_linear_time(unit):
    # 32 times the text: a quadratic step would take 1,024 times as long; timings on a busy machine vary by 5 or so.
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        started = time.perf_counter()
        find_last_integer(text)
        ends_cleanly(text)
        for kind, argument in [
            ("one_sentence", None),
            ("bullets", 3),
            ("yes_no_reason", None),
            ("end_phrase", "the end"),
            ("include_word", "ab"),
            ("avoid_word", "ab"),
            ("under_words", 9),
        ]:
            CONSTRAINTS[kind](text, argument)
        return time.perf_counter() - started

    small = min(seconds(3_000) for _ in range(3))
    assert seconds(96_000) < 300 * small + 0.1


def test_length_counts_tokens_with_eos_and_terminated_tells_who_wrote_it():
    samples = [sample(ids=(5, 6, 2)), sample(ids=(5, 6, 7, 8), finished=False)]
    assert length(samples) == [3.0, 4.0]
    assert terminated(samples) == [1.0, 0.0]


def test_every_simple_source_passes_the_checks_of_a_reward():
    for source in (length, terminated):
        assert evaluate("x", source, [sample()]) == source([sample()])


# --- constraints ---


@pytest.mark.parametrize(
    "text",
    [
        "Bees make honey.",
        "Bees make honey",
        "  Do bees make honey?\n",
        "Dr. Bee keeps 3.5 hives, e.g. in the U.S. south.",
        "J. Smith met A. Bee.",
        '"Bees make honey."',
        "It costs $1.50 a jar!",
    ],
)
def test_one_sentence(text):
    assert one_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "...",
        "Bees fly. They make honey.",
        "bees fly. they make honey",
        "Bees fly! Why?",
        "Bees fly\nThey buzz",
        'He said "Go." Then he left.',
        "So do I. We all do.",
    ],
)
def test_not_one_sentence(text):
    assert not one_sentence(text)


def test_fewer_than_n_words_is_strict_and_nothing_is_no_answer():
    assert under_words("it's a well-known fact", 5)
    assert not under_words("one two three four five", 5)
    assert under_words("one - two - three - four", 5)  # dashes are no words
    assert not under_words("", 5)


def test_words_are_found_whole_in_any_case():
    assert includes_word("Lava is HOT.", "hot")
    assert includes_word("a hot-water bottle", "hot")
    assert not includes_word("A hotel", "hot")
    assert not includes_word("hot_dog", "hot")
    assert includes_word("Use a.b here", "a.b")
    assert not includes_word("Use axb here", "a.b")  # no regular expression


def test_avoiding_a_word_takes_saying_something():
    assert avoids_word("A hotel", "hot")
    assert not avoids_word("It is hot", "hot")
    assert not avoids_word("", "hot")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("- a\n- b", 2),
        ("* a\n* b\n* c", 3),
        ("1. a\n2. b", 2),
        ("1) a\n2) b", 2),
        ("Facts:\n  • a\n  • b\nThat is all.", 2),
        ("no bullets", 0),
        ("- \n- b", 1),
        ("**Bold** text", 0),
        ("-5 degrees", 0),
        ("a - b", 0),
        ("", 0),
        ("- a\r\n- b", 2),
    ],
)
def test_exactly_k_bullets(text, count):
    assert exactly_bullets(text, count)
    assert not exactly_bullets(text, count + 1)


@pytest.mark.parametrize(
    "text",
    [
        "Yes, because they fly.",
        "no. They cannot fly",
        " **Yes** - it is a star",
        '"Yes, they can do it"',
        "Yes it is a star",
    ],
)
def test_yes_or_no_with_a_reason(text):
    assert yes_no_reason(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes",
        "No.",
        "Yes, it is.",
        "Yesterday was a good day",
        "Nobody can do that here",
        "No one knows the answer",
        "Yes or no is the question",
        "Penguins cannot fly, no",
        "I think yes because it is",
    ],
)
def test_no_yes_or_no_with_a_reason(text):
    assert not yes_no_reason(text)


def test_the_last_words_are_the_phrase_whatever_case_and_punctuation():
    assert ends_with("Bees buzz, and that is all.", "and that is all")
    assert ends_with('Bees buzz, and that is **ALL**!"', "and that is all")
    assert ends_with("Bees live\ntoday", "today")
    assert not ends_with("and that is all", "and that is all")  # nothing but the phrase
    assert not ends_with("Bees and that is all there is", "and that is all")
    assert not ends_with("That was yesterday", "day")
    assert not ends_with("", "today")


def test_a_clean_end_may_be_quoted():
    assert all(ends_cleanly(text) for text in ("End.", "End!", "End?  \n", 'He said "end."', "(End.)", "**End.**"))
    assert not any(ends_cleanly(text) for text in ("", "End", "End,", "End:", '"', "1. End"))


def test_a_prompt_without_constraint_is_an_error():
    assert constraint_kept("Bees fly.", {"constraint": "one_sentence", "argument": None})
    with pytest.raises(RewardError, match="one_sentence, under_words"):
        constraint_kept("Bees fly.", {"answer": 7})
