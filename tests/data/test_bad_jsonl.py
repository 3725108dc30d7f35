"""Bad files: each is refused whole, with file, line, field, what was found and what was expected."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pytest

from align.data import DataError, load

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
USER = {"role": "user", "content": "Why?"}
SAYS = {"role": "assistant", "content": "Because."}
OTHER = {"role": "assistant", "content": "No."}


def read(path, **changes):
    options = {
        "kind": "jsonl",
        "name": "jsonl",
        "path": str(path),
        "heldout": 0.5,
        "max_prompt_tokens": None,
        "max_completion_tokens": None,
    }
    return load(SimpleNamespace(**options | changes), None, 0, None)


def line(**changes) -> str:
    """A good line with fields changed; a field given as ... is left out."""
    return json.dumps({key: value for key, value in (GOOD | changes).items() if value is not ...})


def question(answer) -> str:
    return json.dumps({"question": "How many?", "answer": answer})


def chat(*chosen, **changes) -> str:
    return line(**{"prompt": ..., "chosen": list(chosen), "rejected": [USER, OTHER]} | changes)


# name, the third line (after two good ones of its format), what the message says besides file and line
ROWS = [
    ("no json", "prompt,chosen,rejected", "one JSON object per line"),
    ("single quotes", "{'prompt': 'a'}", "double quotes"),
    ("trailing comma", '{"prompt": "a",}', "no trailing commas"),
    ("cut off", '{"prompt": "Why?", "chosen": "Bec', "whole object on one line"),
    ("pretty printed", "{", "jq -c"),
    ("array", "[1, 2]", "JSON array"),
    ("array of rows", "[" + line() + "]", "jq -c"),
    ("open array", "[", "jq -c"),
    ("number", "42", "found the number 42; expected a JSON object"),
    ("string", '"Why?"', 'the string "Why?"'),
    ("null", "null", "found null"),
    ("NaN", '{"prompt": NaN, "chosen": "a", "rejected": "b"}', "NaN, which is not JSON"),
    ("field twice", '{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', "field 'prompt' twice"),
    ("too deep", '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ("two objects", line() + line(), "Extra data"),
    ("empty object", "{}", "an empty object; expected prompt, chosen, rejected"),
    ("unknown fields", '{"instruction": "a", "output": "b"}', "the fields instruction, output"),
    ("two formats at once", line(response="x"), "of two formats at once"),
    ("another format", '{"prompt": "a", "response": "b"}', "as in line 1: one format per file"),
    ("no rejected", line(rejected=...), "field 'rejected'"),
    ("no chosen", line(chosen=...), "field 'chosen'"),
    ("no prompt", line(prompt=...), "field 'prompt': found no such field"),
    ("prompt null", line(prompt=None), "field 'prompt': found null"),
    ("prompt number", line(prompt=7), "field 'prompt': found the number 7"),
    ("prompt object", line(prompt=USER), "field 'prompt': found the object"),
    ("prompt empty", line(prompt=""), "field 'prompt': found an empty string"),
    ("prompt blank", line(prompt=" \n"), "field 'prompt': found an empty string"),
    ("prompt no turns", line(prompt=[]), "field 'prompt': found an empty list"),
    ("prompt ends with assistant", line(prompt=[USER, SAYS]), "expected a last turn of role 'user'"),
    ("chosen boolean", line(chosen=True), "field 'chosen': found the boolean true"),
    ("chosen empty", line(chosen=""), "field 'chosen': found an empty string"),
    ("rejected blank", line(rejected="\t"), "field 'rejected': found an empty string"),
    ("equal", line(rejected="Because."), "the same text as chosen; expected two different answers"),
    ("half a surrogate", '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "surrogate"),
    ("string beside chat", line(chosen=[SAYS]), "both strings or both chat turns"),
    ("turn is a string", chat("Why?", SAYS), "field 'chosen[0]': found the string"),
    ("turn without content", chat({"role": "user"}, SAYS), "field 'chosen[0]'"),
    ("from and value", chat({"from": "human", "value": "Why?"}, SAYS), 'a chat turn {"role": ..., "content": ...}'),
    ("unknown role", chat({"role": "human", "content": "Why?"}, SAYS), "'chosen[0].role': found the string \"human\""),
    ("role is a number", chat({"role": 1, "content": "Why?"}, SAYS), "'system', 'user' or 'assistant'"),
    ("content is a list", chat({"role": "user", "content": []}, SAYS), "field 'chosen[0].content'"),
    ("content empty", chat(USER, {"role": "assistant", "content": ""}), "field 'chosen[1].content'"),
    ("late system turn", chat(USER, {"role": "system", "content": "x"}), "'system' after 'user'"),
    ("user twice", chat(USER, USER, SAYS), "'user' after 'user'"),
    ("no assistant turn", chat(USER), "expected a last turn of role 'assistant'"),
    ("another beginning", chat({"role": "user", "content": "How?"}, SAYS), "whose beginning is not the prompt"),
    ("nothing before the answer", chat(SAYS, rejected=[OTHER]), "field 'prompt'"),
    ("system then answer", chat({"role": "system", "content": "x"}, SAYS), "expected a user turn that is answered"),
    ("prompt and other turns", line(prompt="How?", chosen=[USER, SAYS], rejected=[USER, OTHER]), "is not the prompt"),
    (
        "half a transcript",
        line(prompt=..., chosen="\n\nHuman: Why?\n\nAssistant:", rejected="\n\nHuman: Why?"),
        "field 'chosen[1].content': found an empty string",
    ),
]


@pytest.mark.parametrize(("text", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_bad_preference_line_is_refused(tmp_path, text, says):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{line()}\n{line(prompt='How?')}\n{text}\n{line(prompt='When?')}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line 3" in str(caught.value)
    assert says in str(caught.value)


QUESTIONS = [
    ("no mark", question("It is 7."), "then #### and the final integer"),
    ("no number", question("So #### seven"), 'the string "seven" after ####'),
    ("decimal", question("#### 3.5"), "an integer of at most 18 digits"),
    ("nothing after", question("It is 7 ####"), "after ####"),
    ("two numbers", question("#### 7 or 8"), "after ####"),
    ("huge", question("#### " + "9" * 5000), "at most 18 digits"),
    ("answer is a number", question(7), "field 'answer': found the number 7"),
    ("answer empty", question(""), "field 'answer': found an empty string"),
    ("no answer", '{"question": "How many?"}', "field 'answer'"),
    ("no question", '{"answer": "#### 7"}', "field 'question'"),
    ("another answer", json.dumps({"question": "what is  one?", "answer": "#### 2"}), "the same question in line 1"),
]


@pytest.mark.parametrize(("text", "says"), [row[1:] for row in QUESTIONS], ids=[row[0] for row in QUESTIONS])
def test_a_bad_question_is_refused(tmp_path, text, says):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "What is one?", "answer": "#### 1"}\n\n' + text + "\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line 3" in str(caught.value)
    assert says in str(caught.value)


DEMONSTRATIONS = [
    ("no response", '{"prompt": "a"}', "the fields prompt"),
    ("no prompt", '{"response": "a"}', "field 'prompt'"),
    ("response null", '{"prompt": "a", "response": null}', "field 'response': found null"),
    ("response by the user", json.dumps({"prompt": "a", "response": [USER]}), "role 'assistant'"),
]


@pytest.mark.parametrize(("text", "says"), [r[1:] for r in DEMONSTRATIONS], ids=[r[0] for r in DEMONSTRATIONS])
def test_a_bad_demonstration_is_refused(tmp_path, text, says):
    path = tmp_path / "shown.jsonl"
    path.write_text('{"prompt": "Why?", "response": "Because."}\n' + text + "\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line 2" in str(caught.value)
    assert says in str(caught.value)


FILES = [
    ("gzip", gzip.compress(line().encode()), 1, "gunzip"),
    ("parquet", b"PAR1\x15\x04", 1, "Parquet"),
    ("zip", b"PK\x03\x04\x14", 1, "zip archive"),
    ("utf-16", line().encode("utf-16"), 1, "iconv -f UTF-16"),
    ("utf-16 without mark", line().encode("utf-16-le"), 1, "NUL byte"),
    ("latin-1", line().encode() + b"\n" + line(prompt="X").encode().replace(b"X", b"\xe9"), 2, "0xe9 at column 13"),
    ("second mark", b"\xef\xbb\xbf" * 2 + line().encode(), 1, "second byte order mark"),
    ("joined files", line().encode() + b"\n\xef\xbb\xbf" + line(prompt="X").encode(), 2, "were files joined"),
    ("endless line", b'{"prompt": "' + b"a" * 5_000_000, 1, "line ends missing"),
    ("old line ends", line().encode() + b"\r" + line(prompt="X").encode(), 1, "Extra data"),
]


@pytest.mark.parametrize(("content", "number", "says"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_file_that_is_no_utf8_text_is_refused(tmp_path, content, number, says):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line {number}" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n  \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "pairs.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="pairs.jsonl: the file is empty"):
        read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="no-such.jsonl: no such file"):
        read(tmp_path / "no-such.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_one_prompt_cannot_be_split(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(line() + "\n" + line(prompt=" why? ", chosen="Other."))
    with pytest.raises(DataError, match="only one distinct prompt"):
        read(path)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 5])
def test_a_share_outside_zero_to_one_is_refused(tmp_path, share):
    path = tmp_path / "pairs.jsonl"
    path.write_text(line() + "\n" + line(prompt="How?"))
    with pytest.raises(DataError, match="data.heldout=.*between 0 and 1"):
        read(path, heldout=share)
