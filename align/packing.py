"""Rows of [prompt | completion] laid out as one packed row: each prompt once, its completions behind it; or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from align.attention import Block, attending


@dataclass(frozen=True)
class Packed:
    """N tokens side by side, and where they came from."""

    ids: Tensor  # [1, N] int64
    positions: Tensor  # [1, N] int64, counted from the start of each prompt
    blocks: tuple[Block, ...]
    predicting: Tensor  # [completion tokens] int64, row by row: the place of the token before each

    def hidden(self, decoder: Any, **options: Any) -> Tensor:
        """The decoder's last hidden states. [N, H]"""
        with attending(decoder):
            return decoder(
                input_ids=self.ids, position_ids=self.positions, blocks=self.blocks, return_dict=True, **options
            ).last_hidden_state[0]


def groups_of(prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Rows with the same prompt, in the order in which the prompts first appear."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(row)
    return list(found.values())


def pack(prompts: Sequence[tuple[int, ...]], completions: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """`prompts[i]` is what `completions[i]` answers; a prompt of several rows is laid out once.

    The last token of a completion predicts nothing that is asked for, and nothing sees it: it is left out.
    """
    ids: list[int] = []
    positions: list[int] = []
    blocks = list[Block]()
    places = list[list[int]]([] for _ in prompts)
    for group in groups_of(prompts):
        prompt, first = prompts[group[0]], len(ids)
        head = slice(first, first + len(prompt))
        ids += prompt
        positions += range(len(prompt))
        answers = [completions[row][:-1] for row in group]
        for row, answer in zip(group, answers, strict=True):
            places[row] = [head.stop - 1, *range(len(ids), len(ids) + len(answer))][: len(completions[row])]
            ids += answer
            positions += range(len(prompt), len(prompt) + len(answer))
        blocks += _blocks(head, [len(answer) for answer in answers if answer], device)
    return Packed(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(blocks),
        torch.tensor([place for row in places for place in row], dtype=torch.long, device=device),
    )


def right_pad(rows: list[Any], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> ids [B, L] and mask [B, L] bool, pads on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)


def last_hidden(decoder: Any, rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """The last hidden state of each row's last token, what rows begin with in common computed once. [B, H]"""
    prompts = shared_prompts(rows)
    # A row's last token predicts what would come next. `pack` leaves that out, whatever it is.
    completions = [(*row[len(prompt) :], 0) for row, prompt in zip(rows, prompts, strict=True)]
    layout = pack(prompts, completions, device)
    ends = torch.tensor([len(completion) for completion in completions], device=device).cumsum(0) - 1
    return layout.hidden(decoder, use_cache=False)[layout.predicting[ends]]


def shared_prompts(rows: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The beginning of each row that is laid out once for all rows that have it, chosen to save the most tokens.

    Sorted rows with a common beginning stand side by side. A stretch of them shares the least that neighbours have in
    common, unless its two parts save more, cut where that least is.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    common = [len(commonprefix([rows[a], rows[b]])) for a, b in pairwise(order)]  # type: ignore[list-item]

    def best(first: int, last: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Tokens saved by rows first..last of the order, and its stretches: their ends and what they share."""
        if first == last:
            return 0, [(first, last, len(rows[order[first]]))]
        cut = min(range(first, last), key=common.__getitem__)
        left, right = best(first, cut), best(cut + 1, last)
        together = (last - first) * common[cut]
        if together > left[0] + right[0]:
            return together, [(first, last, common[cut])]
        return left[0] + right[0], left[1] + right[1]

    prompts = [tuple[int, ...]()] * len(rows)
    for first, last, length in best(0, len(rows) - 1)[1]:
        for row in order[first : last + 1]:
            prompts[row] = rows[row][:length]
    return prompts


def _blocks(head: slice, lengths: list[int], device: torch.device) -> list[Block]:
    nothing, prompt = slice(head.start, head.start), head.stop - head.start
    if len(lengths) == 1:  # a plain sequence: one product instead of three
        return [Block(nothing, slice(head.start, head.stop + lengths[0]), (prompt + lengths[0],), device)]
    alone = Block(nothing, head, (prompt,), device)
    branches = Block(head, slice(head.stop, head.stop + sum(lengths)), tuple(lengths), device)
    return [alone, branches] if lengths else [alone]
