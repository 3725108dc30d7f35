"""Files of data: whatever stands in them, they are refused by one sentence or read as they must be."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from align.data import Data, DataError, load
from align.data.lines import MAX_LINE_BYTES
from tests.fuzz import bad
from tests.fuzz.trial import attempt, fuzzed

USER, SAYS, OTHER = ({"role": role, "content": text} for role, text in
                     (("user", "Why?"), ("assistant", "Because."), ("assistant", "No.")))  # fmt: skip
FILES = {
    "preference": [{"prompt": f"Why {i}?", "chosen": "Because.", "rejected": "No."} for i in range(4)],
    "chat": [
        {"prompt": [{"role": "system", "content": f"{i}"}, USER], "chosen": [SAYS], "rejected": [OTHER]}
        for i in range(3)
    ],
    "begun": [
        {"chosen": [{**USER, "content": f"Why {i}?"}, SAYS], "rejected": [{**USER, "content": f"Why {i}?"}, OTHER]}
        for i in range(3)
    ],
    "transcript": [
        {"chosen": f"\n\nHuman: {i}?\n\nAssistant: Yes.", "rejected": f"\n\nHuman: {i}?\n\nAssistant: No."}
        for i in range(3)
    ],
    "demonstration": [{"prompt": f"Why {i}?", "response": "Because."} for i in range(3)],
    "question": [{"question": f"{i} + 1?", "answer": f"<<{i}+1>> #### {i + 1}"} for i in range(3)],
}


def read(path, heldout=0.5) -> Data:
    options = {"path": str(path), "heldout": heldout, "max_prompt_tokens": None, "max_completion_tokens": None}
    return load(SimpleNamespace(kind="jsonl", name="jsonl", **options), None, 0, None)


def check(path) -> None:
    data = attempt("data files", lambda: read(path), DataError, most_s=3)
    if data is None:
        return
    assert read(path).fingerprint == data.fingerprint
    sides = [{p.topic for p in prompts} | {p.prompt.topic for p in pairs} for prompts, pairs in
             ((data.train_prompts, data.train_pairs), (data.heldout_prompts, data.heldout_pairs))]  # fmt: skip
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    texts = [turn["content"] for prompt in (*data.train_prompts, *data.heldout_prompts) for turn in prompt.messages]
    for pair in (*data.train_pairs, *data.heldout_pairs):
        assert pair.chosen != pair.rejected
        texts += [pair.chosen, pair.rejected]
    texts += [one.response for one in data.demonstrations]
    assert all(text.strip() and text.encode() for text in texts)


@fuzzed(150)
def test_damaged_files(tmp_path_factory, rng):
    rows = FILES[rng.choice(list(FILES))]
    data = bad.lines(rows)
    for _ in range(rng.randrange(1, 3)):
        data = bad.damaged(rng, data)
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(data)
    check(path)


@fuzzed(250)
def test_files_with_wrong_values(tmp_path_factory, rng):
    rows = bad.changed(rng, FILES[rng.choice(list(FILES))], rng.randrange(3))
    if rng.random() < 0.2 and isinstance(rows, list):
        rows += FILES[rng.choice(list(FILES))]
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    if rng.random() < 0.2:  # written as text, not escaped
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in (rows if isinstance(rows, list) else [rows]))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(bad.lines(rows if isinstance(rows, list) else [rows]))
    check(path)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("letter", ["a", "<", "\\n\\nHuman:", "9"])
def test_lines_as_long_as_they_may_be_and_longer(tmp_path, beyond, letter):
    """The last line has MAX_LINE_BYTES + beyond bytes, in each of the fields."""
    for name, rows in FILES.items():
        if name in ("chat", "begun"):
            continue
        for field, value in rows[0].items():
            start, end = json.dumps({**rows[0], field: value + "@"}).split("@")
            room = MAX_LINE_BYTES + beyond - len(start) - len(end) - 1
            filled = (letter * (room // len(letter))).ljust(room, "x")
            path = tmp_path / "long.jsonl"
            path.write_bytes(bad.lines(rows) + (start + filled + end + "\n").encode())
            check(path)
