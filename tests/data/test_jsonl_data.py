from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from align.data import DataError, load
from reward_models.base import Sample


def write(path, rows, start: bytes = b"") -> str:
    path.write_bytes(start + b"\n".join(json.dumps(row).encode() for row in rows) + b"\n")
    return str(path)


def read(path, tokenizer=None, **changes):
    options = {
        "kind": "jsonl",
        "name": "mine",
        "path": str(path),
        "heldout": 0.25,
        "max_prompt_tokens": None,
        "max_completion_tokens": None,
    }
    return load(SimpleNamespace(**options | changes), tokenizer, 0, None)


def pairs(count: int) -> list[dict]:
    return [{"prompt": f"Why {i}?", "chosen": f"Because {i}.", "rejected": "No."} for i in range(count)]


def test_a_quarter_of_the_prompts_is_held_out_and_none_is_on_both_sides(tmp_path):
    data = read(write(tmp_path / "a.jsonl", pairs(40)))
    assert (len(data.train_prompts), len(data.heldout_prompts)) == (30, 10)
    assert (len(data.train_pairs), len(data.heldout_pairs)) == (30, 10)
    assert not {p.text for p in data.train_prompts} & {p.text for p in data.heldout_prompts}
    assert (data.name, data.verifier, data.gold, data.demonstrations, data.notes) == ("mine", None, None, (), ())


def test_the_same_prompt_in_other_letters_and_spaces_stays_on_one_side(tmp_path):
    rows = pairs(20) + [row | {"prompt": "  " + row["prompt"].upper(), "chosen": "Well."} for row in pairs(20)]
    data = read(write(tmp_path / "a.jsonl", rows))
    assert len(data.heldout_prompts) == 5 and len(data.heldout_pairs) == 10
    assert {p.text.strip().lower() for p in data.train_prompts}.isdisjoint(
        pair.prompt.text.strip().lower() for pair in data.heldout_pairs
    )


def test_the_split_does_not_depend_on_the_order_of_the_lines(tmp_path):
    one = read(write(tmp_path / "a.jsonl", pairs(20)))
    two = read(write(tmp_path / "b.jsonl", pairs(20)[::-1]))
    assert {p.id for p in one.heldout_prompts} == {p.id for p in two.heldout_prompts}


def test_a_path_from_home_is_found_since_a_shell_leaves_the_tilde_behind_an_equals_sign(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", pairs(4))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/a.jsonl").fingerprint == read(tmp_path / "a.jsonl").fingerprint


def test_two_prompts_are_enough_and_one_is_held_out(tmp_path):
    data = read(write(tmp_path / "a.jsonl", pairs(2)))
    assert (len(data.train_prompts), len(data.heldout_prompts)) == (1, 1)


def test_all_ways_of_writing_a_pair_give_the_same_record(tmp_path):
    user = {"role": "user", "content": "Why?"}
    yes, no = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
    ways = [
        {"prompt": "Why?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [user], "chosen": [yes], "rejected": [no]},
        {"prompt": [user], "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Why?", "chosen": [user, yes], "rejected": [user, no]},
        {"chosen": [user, yes], "rejected": [user, no]},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
    ]
    for way in ways:
        data = read(write(tmp_path / "a.jsonl", [way, *pairs(1)]), heldout=0.5)
        (pair,) = (pair for pair in [*data.train_pairs, *data.heldout_pairs] if pair.prompt.text == "Why?")
        assert pair.prompt.messages == (user,)
        assert (pair.chosen, pair.rejected) == ("Yes.", "No.")


def test_a_conversation_keeps_its_turns(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Why?"},
    ]
    data = read(write(tmp_path / "a.jsonl", [{"prompt": turns, "chosen": "A", "rejected": "B"}, *pairs(1)]))
    assert tuple(turns) in [pair.prompt.messages for pair in [*data.train_pairs, *data.heldout_pairs]]


def test_demonstrations_are_of_training_prompts_only(tmp_path):
    data = read(write(tmp_path / "a.jsonl", [{"prompt": f"Say {i}", "response": str(i)} for i in range(8)]))
    assert len(data.demonstrations) == 6 and len(data.heldout_prompts) == 2
    assert {d.prompt.id for d in data.demonstrations} == {p.id for p in data.train_prompts}
    assert data.train_pairs == data.heldout_pairs == ()
    assert data.verifier is None


def test_a_question_brings_its_verifier_and_a_demonstration_without_calculator_notes(tmp_path):
    reasons = [f"{i}+1000=<<{i}+1000={i + 1000}>>{i + 1000}\n#### 1,00{i}" for i in range(4)]
    rows = [{"question": f"{i} apples and 1,000 more?", "answer": reason} for i, reason in enumerate(reasons)]
    data = read(write(tmp_path / "a.jsonl", rows))
    shown = data.demonstrations[0]
    answer = shown.prompt.info["answer"]
    assert shown.response == f"{answer - 1000}+1000={answer}\n#### {answer}"
    samples = [Sample("", text, (), (), True, shown.prompt.info) for text in (shown.response, "#### 7")]
    assert data.verifier(samples) == [1.0, 0.0]


def test_one_byte_order_mark_blank_lines_and_windows_line_ends_are_fine(tmp_path):
    text = "\r\n".join(json.dumps(row) for row in pairs(4)) + "\r\n\r\n\n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read(tmp_path / "a.jsonl").train_pairs) == 3


def test_fields_that_are_not_read_are_named(tmp_path):
    data = read(write(tmp_path / "a.jsonl", [row | {"source": "me", "score": 1} for row in pairs(4)]))
    assert data.notes == ("fields that are not read: score, source",)


def test_long_examples_are_dropped_whole_and_reported_with_their_lengths(tmp_path, tokenizer):
    rows = [*pairs(4), {"prompt": "Why 5?", "chosen": "x" * 99, "rejected": "No."}]
    data = read(write(tmp_path / "a.jsonl", rows), tokenizer, max_completion_tokens=50)
    assert len([*data.train_pairs, *data.heldout_pairs]) == 4
    # one token per byte, and EOS: 99 + 1 against len("Because 0.") + 1
    assert data.notes == ("data.max_completion_tokens=50: dropped 1 of 5 (mean 100.0 tokens against 11.0 kept)",)


def test_a_limit_that_drops_nothing_says_so_too(tmp_path, tokenizer):
    data = read(write(tmp_path / "a.jsonl", pairs(4)), tokenizer, max_prompt_tokens=500)
    assert data.notes == ("data.max_prompt_tokens=500: dropped 0 of 4",)


def test_limits_that_drop_everything_or_cannot_count_are_refused(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", pairs(4))
    with pytest.raises(DataError, match="all 4 lines are longer.*dropped 4 of 4"):
        read(path, tokenizer, max_prompt_tokens=1)
    with pytest.raises(DataError, match="data.max_prompt_tokens=9: needs a tokenizer"):
        read(path, None, max_prompt_tokens=9)


def test_the_fingerprint_follows_content_and_options(tmp_path):
    path = write(tmp_path / "a.jsonl", pairs(8))
    same = write(tmp_path / "b.jsonl", pairs(8))
    other = write(tmp_path / "c.jsonl", pairs(9))
    assert read(path).fingerprint == read(same).fingerprint
    assert len({read(path).fingerprint, read(other).fingerprint, read(path, heldout=0.5).fingerprint}) == 3
