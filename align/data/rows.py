"""One line of a .jsonl file, or row of a set, as an example: which of three formats it is, and whether its fields fit.

preference      prompt, chosen, rejected     strings or chat turns; the prompt may also be what both begin with
demonstration   prompt, response
question        question, answer             the answer ends with `#### NUMBER`, as in GSM8K
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.data.lines import Place, listed, show
from reward_models.verifiers import find_last_integer

FORMATS = {
    "preference": ("prompt", "chosen", "rejected"),
    "demonstration": ("prompt", "response"),
    "question": ("question", "answer"),
}
CHAT = 'a non-empty string, or a list of {"role": ..., "content": ...}'
MAX_DIGITS = 18

Turn = Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """A checked line. `texts`: chosen and rejected, or the response."""

    place: Place
    format: str
    messages: tuple[Turn, ...]
    texts: tuple[str, ...]
    answer: int | None = None  # of a question


def format_of(place: Place, row: Mapping[str, Any]) -> str:
    """The format whose own fields the line has. Raises DataError for none, or for those of two."""
    own = {"preference": {"chosen", "rejected"}, "demonstration": {"response"}, "question": {"question", "answer"}}
    found = [name for name, fields in own.items() if fields & set(row)]
    if len(found) == 1:
        return found[0]
    options = "; or ".join(", ".join(fields) for fields in FORMATS.values())
    has = f"the fields {listed(row)}" if row else "an empty object"
    raise place.error(None, has if not found else f"{has}, of two formats at once", options)


def parse(place: Place, row: Mapping[str, Any], name: str) -> Row:
    """A line of the format `name`. Raises DataError naming file, line, field, what was found and what was expected."""
    return {"preference": _preference, "demonstration": _demonstration, "question": _question}[name](place, row)


def _preference(place: Place, row: Mapping[str, Any]) -> Row:
    replies = {field: _answered(place, row, field) for field in ("chosen", "rejected")}
    kinds = {field: type(row[field]).__name__ for field in replies}
    if len(set(kinds.values())) > 1:
        raise place.error(
            "rejected",
            f"{show(row['rejected'])} beside a chosen of another kind",
            "chosen and rejected both strings or both chat turns",
        )
    if "prompt" in row:
        messages = _prompt(place, row)
    else:
        messages = replies["chosen"][:-1]
        if not messages:
            raise place.error("prompt", "no such field", "a prompt, as its own field or as the first turns of chosen")
        if messages[-1]["role"] != "user":
            found = f"a {messages[-1]['role']} turn before the last"
            raise place.error("chosen", found, "a user turn that is answered")
    chosen, rejected = (_reply(place, field, turns, messages) for field, turns in replies.items())
    if chosen == rejected:
        raise place.error("rejected", "the same text as chosen", "two different answers")
    return Row(place, "preference", messages, (chosen, rejected))


def _demonstration(place: Place, row: Mapping[str, Any]) -> Row:
    messages = _prompt(place, row)
    turns = _answered(place, row, "response")
    return Row(place, "demonstration", messages, (_reply(place, "response", turns, messages),))


def _question(place: Place, row: Mapping[str, Any]) -> Row:
    question = _text(place, "question", _get(place, row, "question"))
    answer = _text(place, "answer", _get(place, row, "answer"))
    rationale, mark, final = answer.rpartition("####")
    if not mark:
        raise place.error("answer", show(answer), "the reasoning, then #### and the final integer (as in GSM8K)")
    plain = final.strip().replace("$", "").replace(",", "")
    number = find_last_integer(plain)
    # the length first: a pattern of a million digits takes seconds to compile
    if number is None or len(number) > MAX_DIGITS or not re.fullmatch(rf"{re.escape(number)}(\.0+)?", plain):
        raise place.error("answer", f"{show(final.strip())} after ####", f"an integer of at most {MAX_DIGITS} digits")
    # <<3+4=7>> are GSM8K's calculator notes, not text to imitate.
    shown = re.sub(r"<<[^<>]*>>", "", rationale).strip()
    response = f"{shown}\n#### {number}" if shown else f"#### {number}"
    return Row(place, "question", ({"role": "user", "content": question},), (response,), int(number))


def _prompt(place: Place, row: Mapping[str, Any]) -> tuple[Turn, ...]:
    value = _get(place, row, "prompt")
    if isinstance(value, str):
        return ({"role": "user", "content": _text(place, "prompt", value)},)
    turns = _chat(place, "prompt", value)
    if turns[-1]["role"] != "user":
        raise place.error("prompt", f"a last turn of role {turns[-1]['role']!r}", "a last turn of role 'user'")
    return turns


def _answered(place: Place, row: Mapping[str, Any], field: str) -> tuple[Turn, ...]:
    """Turns that end with the assistant's."""
    turns = _chat(place, field, _get(place, row, field))
    if turns[-1]["role"] != "assistant":
        raise place.error(field, f"a last turn of role {turns[-1]['role']!r}", "a last turn of role 'assistant'")
    return turns


def _reply(place: Place, field: str, turns: tuple[Turn, ...], messages: tuple[Turn, ...]) -> str:
    """The answer: the only assistant turn, or the last one after the very turns of the prompt."""
    if len(turns) > 1 and turns[:-1] != messages:
        raise place.error(
            field,
            f"{len(turns)} turns whose beginning is not the prompt",
            "one assistant turn, or the prompt's turns and then one; chosen and rejected alike",
        )
    return turns[-1]["content"]


def _chat(place: Place, field: str, value: Any) -> tuple[Turn, ...]:
    """Turns in order: a system turn first if any, then user and assistant by turns. A string is one assistant turn."""
    if isinstance(value, str):
        return _transcript(place, field, _text(place, field, value))
    if not isinstance(value, list) or not value:
        raise place.error(field, "an empty list" if value == [] else show(value), CHAT)
    turns = tuple(_turn(place, f"{field}[{i}]", turn) for i, turn in enumerate(value))
    previous = "system"
    for i, turn in enumerate(turns):
        if (turn["role"] == "system" and i > 0) or (turn["role"] == previous and i > 0):
            raise place.error(
                f"{field}[{i}].role",
                f"{turn['role']!r} after {previous!r}",
                "a system turn at most at the start, then user and assistant by turns",
            )
        previous = turn["role"]
    return turns


def _turn(place: Place, field: str, turn: Any) -> Turn:
    if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
        raise place.error(field, show(turn), 'a chat turn {"role": ..., "content": ...}')
    if turn["role"] not in ("system", "user", "assistant"):
        raise place.error(f"{field}.role", show(turn["role"]), "'system', 'user' or 'assistant'")
    return {"role": turn["role"], "content": _text(place, f"{field}.content", turn["content"])}


def _transcript(place: Place, field: str, text: str) -> tuple[Turn, ...]:
    """Anthropic's HH files write a chat as one string of "\\n\\nHuman: ..." and "\\n\\nAssistant: ..." turns."""
    if not text.startswith("\n\nHuman:"):
        return ({"role": "assistant", "content": text},)
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return _chat(
        place,
        field,
        [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)],
    )


def _get(place: Place, row: Mapping[str, Any], field: str) -> Any:
    if field not in row:
        raise place.error(field, f"no such field among {listed(row)}", CHAT)
    return row[field]


def _text(place: Place, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise place.error(field, show(value), "a non-empty string")
    if not value.strip():
        raise place.error(field, "an empty string", "a non-empty string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise place.error(field, "half of a surrogate pair (\\ud800 to \\udfff alone)", "valid Unicode") from None
    return value
