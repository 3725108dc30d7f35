"""Which prompts a step samples for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from align.records import Prompt
from align.refusals import ConfigError
from align.seeds import derive


class PromptStream:
    """`per_step` prompts at a time, each epoch in a new order; a batch may reach into the next epoch.

    `drawn` counts the batches; `skip_to` draws on until so many are, which restores the stream of an earlier run.
    Raises ConfigError when there are fewer prompts than that: a prompt twice in one batch would be answered alike.
    """

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int):
        if len(prompts) < per_step:
            raise ConfigError(f"algo.prompts_per_step={per_step}: the data has only {len(prompts)} training prompts")
        self.prompts, self.per_step, self.drawn = prompts, per_step, 0
        self._generator = torch.Generator().manual_seed(derive(seed, "prompts"))
        self._waiting: list[int] = []  # indices: prompts of a large file stay there until they are asked for

    def next(self) -> list[Prompt]:
        return [self.prompts[i] for i in self._draw()]

    def _draw(self) -> list[int]:
        if len(self._waiting) < self.per_step:  # the next epoch starts with what this batch does not hold yet
            order = torch.randperm(len(self.prompts), generator=self._generator).tolist()
            self._waiting += sorted(order, key=set(self._waiting).__contains__)
        batch, self._waiting = self._waiting[: self.per_step], self._waiting[self.per_step :]
        self.drawn += 1
        return batch

    def skip_to(self, drawn: int) -> None:
        while self.drawn < drawn:
            self._draw()
