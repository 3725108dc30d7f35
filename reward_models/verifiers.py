"""Rewards that can be checked by rule: the last integer, constraints on form, length, termination.

Every function is pure and takes time linear in the length of the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_models.base import RewardError, Sample

# A word that begins with a letter keeps its digits (H2O, Qwen2.5, x_1): they are a name, not a number. Otherwise a
# number: a sign unless it stands between operands (3-4), digits with or without thousands separators, decimals.
# `[0-9]`, since `\d` would accept digits of every script.
_NUMBER = re.compile(
    r"[^\W\d_](?:\w|(?<=[0-9])\.(?=[0-9]))*"
    r"|(?P<sign>(?<![\w)\]}\-\u2212])[-\u2212]\$?)?"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<decimals>(?:\.[0-9]+)*)|(?P<bare>(?<![\w.])\.[0-9]+))"
)


def last_integer(samples: Sequence[Sample]) -> list[float]:
    """1.0 where the last number of the completion is an integer equal to info["answer"], else 0.0.

    `1,234`, `12.` and `= 12` are integers, so is `18.00`; `3.5` is a number that equals no integer. The minus of `3-4`
    is an operator, that of `= -4` a sign. A list written without spaces (`100,200`) reads as one number.
    Raises RewardError for a prompt without an integer answer.
    """
    return [float(find_last_integer(sample.completion) == _answer(sample.info)) for sample in samples]


def find_last_integer(text: str) -> str | None:
    """The last number of the text as canonical digits ("-1234"), or None when there is none or it is not an integer."""
    last = None
    for match in _NUMBER.finditer(text):
        if match["whole"] or match["bare"]:
            last = match
    if last is None or last["bare"] or not re.fullmatch(r"(\.0+)?", last["decimals"]):
        return None
    # Compared as digits: int() refuses more than 4,300 of them, and a model may well write as many.
    digits = last["whole"].replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if last["sign"] and digits != "0" else digits


def _answer(info: Mapping[str, Any]) -> str:
    answer = info.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, str) and re.fullmatch(r"\s*[-\u2212]?\$?[0-9][0-9,]*(\.0+)?\s*", answer):
        return find_last_integer(answer) or ""
    raise RewardError(f"the verifier needs an integer in info['answer'] of every prompt, found {answer!r}")


def length(samples: Sequence[Sample]) -> list[float]:
    """Completion tokens, EOS included."""
    return [float(len(sample.completion_ids)) for sample in samples]


def terminated(samples: Sequence[Sample]) -> list[float]:
    """1.0 where the completion ended with EOS before the limit, else 0.0."""
    return [float(sample.finished) for sample in samples]


# --- constraints of the annotator's prompts: (completion, argument) -> kept or not ---

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_BULLET = re.compile(r"[ \t]*(?:[-*•‣–]|[0-9]{1,3}[.)])[ \t]+\S")
# Behind the first mark of a run alone: tried at each of n marks, n of them would take n^2 steps.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"'”’)\]*]*\s+(?=\S)")
_ABBREVIATIONS = {"e.g", "i.e", "dr", "mr", "mrs", "ms", "st", "vs", "u.s", "no", "approx"}
_YES_NO = re.compile(r"[\s\"'“*_#]*(?P<answer>yes|no)\b(?!\s+(?:one|matter|doubt|or|and)\b)", re.IGNORECASE)
_CLOSING = "\"'”’)]}*_` \t\r\n"
REASON_WORDS = 3  # "Yes, it does." is an answer without a reason


def words(text: str) -> list[str]:
    """Runs of letters and digits, with inner apostrophes and hyphens: "it's a two-way street" has 4."""
    return _WORD.findall(text)


def one_sentence(text: str, _: None = None) -> bool:
    """One line with at least one word and no second sentence. The final full stop is not asked for here."""
    text = text.strip()
    if not words(text) or "\n" in text:
        return False
    return all(_abbreviation(text, match.start()) for match in _SENTENCE_END.finditer(text))


def _abbreviation(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to an abbreviation (Dr.) or an initial (J.)."""
    before = text[max(0, stop - 12) : stop]
    word = re.split(r"[\s(\"'“]", before)[-1]
    initial = len(word) == 1 and word.isupper() and word != "I"
    return text[stop] == "." and (initial or word.lower() in _ABBREVIATIONS)


def under_words(text: str, limit: int) -> bool:
    """At least one word, and fewer than `limit`."""
    return 0 < len(words(text)) < limit


def includes_word(text: str, word: str) -> bool:
    """The word itself, in any case, not as a part of another word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def avoids_word(text: str, word: str) -> bool:
    """Says something, without the word."""
    return bool(words(text)) and not includes_word(text, word)


def exactly_bullets(text: str, count: int) -> bool:
    """Exactly `count` lines that begin with a bullet (- * •) or a number (1. 1)) and have content."""
    return sum(_BULLET.match(line) is not None for line in text.splitlines()) == count


def yes_no_reason(text: str, _: None = None) -> bool:
    """Begins with yes or no, then at least three more words. "No one knows" and "Yes or no" are neither."""
    match = _YES_NO.match(text)
    return match is not None and len(words(text[match.end() :])) >= REASON_WORDS


def ends_with(text: str, phrase: str) -> bool:
    """The last words are the phrase, whatever the case and the punctuation, and something stands before it."""
    said, asked = [word.lower() for word in words(text)], [word.lower() for word in words(phrase)]
    return len(said) > len(asked) and said[-len(asked) :] == asked


def ends_cleanly(text: str) -> bool:
    """The last character is a full stop, exclamation or question mark; closing quotes and brackets may follow it."""
    return text.rstrip(_CLOSING).endswith((".", "!", "?"))


CONSTRAINTS: dict[str, Callable[[str, Any], bool]] = {
    "one_sentence": one_sentence,
    "under_words": under_words,
    "include_word": includes_word,
    "avoid_word": avoids_word,
    "bullets": exactly_bullets,
    "yes_no_reason": yes_no_reason,
    "end_phrase": ends_with,
}


def constraint_kept(text: str, info: Mapping[str, Any]) -> bool:
    """Whether the completion keeps the constraint of its prompt. Raises RewardError when the prompt states none."""
    kind = info.get("constraint")
    if kind not in CONSTRAINTS:
        raise RewardError(f"info['constraint'] is {kind!r}; known constraints: {', '.join(CONSTRAINTS)}")
    return CONSTRAINTS[kind](text, info.get("argument"))
