"""Training data for TRL's trainers: tokenised here, laid out in the order of training, never touched by TRL again.

A completion's ids end with EOS, once (align/data/tokens.py), and its logprob counts exactly those ids. The layout is a
list of as many examples as the run will see: seeded shuffles of the data, one after another. So an optimizer step never
straddles a short rest of an epoch, and every loss sees the same pairs in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align.data.errors import DataError
from align.data.tokens import encode_completion, encode_prompt
from align.seeds import derive
from reward_models.base import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.records import Demonstration, PreferencePair

Row = dict[str, Any]
IGNORED = -100  # the label that torch's cross-entropy skips


def training_order(count: int, draws: int, seed: int) -> list[int]:
    """Which of `count` examples to train on, in order: whole epochs, each shuffled anew, cut after `draws`."""
    assert count >= 1, "there is nothing to train on"
    shuffler = random.Random(derive(seed, "pairs"))
    order: list[int] = []
    while len(order) < draws:
        epoch = list(range(count))
        shuffler.shuffle(epoch)
        order += epoch
    return order[:draws]


def pair_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[Row]:
    """prompt_ids, chosen_ids, rejected_ids: what DPOTrainer's collator reads."""
    return [
        {
            "prompt_ids": encode_prompt(tokenizer, pair.prompt),
            "chosen_ids": encode_completion(tokenizer, pair.chosen),
            "rejected_ids": encode_completion(tokenizer, pair.rejected),
        }
        for pair in pairs
    ]


def reward_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[Row]:
    """chosen_ids and rejected_ids, each prompt and answer in one: what RewardTrainer's collator reads."""
    return [
        {key: row["prompt_ids"] + row[key] for key in ("chosen_ids", "rejected_ids")}
        for row in pair_rows(tokenizer, pairs)
    ]


def pair_samples(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[Sample]:
    """Every chosen answer, then every rejected one, as a reward sees them."""
    sides = [(pair, pair.chosen) for pair in pairs] + [(pair, pair.rejected) for pair in pairs]
    return [
        Sample(
            prompt=pair.prompt.text,
            completion=answer,
            prompt_ids=tuple(encode_prompt(tokenizer, pair.prompt)),
            completion_ids=tuple(encode_completion(tokenizer, answer)),
            finished=True,
            info=pair.prompt.info,
        )
        for pair, answer in sides
    ]


def demonstration_rows(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Demonstration]) -> list[Row]:
    """input_ids and labels: SFT's loss counts the response, not the prompt."""
    rows = []
    for example in examples:
        prompt = encode_prompt(tokenizer, example.prompt)
        response = encode_completion(tokenizer, example.response)
        rows.append({"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response})
    return rows


def kto_rows(pairs: Sequence[Row], pairs_per_step: int) -> list[Row]:
    """Each pair as a good and a bad example, with the answer to another prompt that KTO's reference point needs.

    That answer is the same side of the step's next pair with another prompt. TRL's own rotation takes the row before,
    which after unpairing can be an answer to the very same prompt: then the reference point absorbs the reward.
    Raises DataError for a step with a single prompt.
    """
    rows = []
    for i, pair in enumerate(pairs):
        start = i - i % pairs_per_step
        step = pairs[start : start + pairs_per_step]
        other = _next_prompt(step, i - start)
        for side, label in (("chosen_ids", True), ("rejected_ids", False)):
            rows.append(
                {
                    "prompt_ids": pair["prompt_ids"],
                    "completion_ids": pair[side],
                    "KL_completion_ids": other[side],
                    "label": label,
                }
            )
    return rows


def _next_prompt(step: Sequence[Row], i: int) -> Row:
    for candidate in [*step[i + 1 :], *step[:i]]:
        if candidate["prompt_ids"] != step[i]["prompt_ids"]:
            return candidate
    raise DataError(
        f"algo=kto: all {len(step)} pairs of an optimizer step have the same prompt, and its KL needs answers to "
        "another one; raise algo.pairs_per_step or give data with more prompts"
    )
