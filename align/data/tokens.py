"""Text to token ids and back, in one place: where a prompt ends, and that EOS stands once, at a completion's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.data.errors import DataError
from align.records import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """[P] ids of the chat template with the generation prompt; without a template, the turns as lines of text.

    Special-token strings inside a turn stay text: a user who types `<|im_end|>` does not end the turn.
    """
    messages = [dict(message) for message in prompt.messages]
    if not tokenizer.chat_template:
        text = "".join(message["content"] + "\n" for message in messages)
        ids = list(tokenizer(text, split_special_tokens=True)["input_ids"])  # with BOS where the tokenizer adds one
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    specials = [token for token in tokenizer.all_special_tokens if token]
    if any(token in message["content"] for message in messages for token in specials):
        return _encode_piecewise(tokenizer, messages)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _encode_piecewise(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """The template's own text with its special tokens, the turns without: each turn is a mark while it is rendered."""
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]  # private-use characters
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise DataError(
                "the chat template rewrites its turns, so special tokens in a prompt cannot be kept as "
                f"text: remove them from {message['content'][:80]!r}"
            )
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += _plain(tokenizer, message["content"])
    return ids + list(tokenizer(rest, add_special_tokens=False)["input_ids"])


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """[T] ids of the text, then EOS: exactly once, and nothing after it. Raises DataError where that cannot be."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no EOS token, so no completion can end")
    body = _plain(tokenizer, text)
    if eos in body:
        raise DataError(
            f"the tokenizer turns {tokenizer.eos_token!r} inside a completion into EOS; remove it from the "
            f"text {text[:80]!r}"
        )
    return [*body, eos]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of the ids without special tokens, byte for byte (no clean-up of spaces)."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
