"""When steps ended."""

from __future__ import annotations

import time
from itertools import pairwise


class Stamps:
    """The clock that both sides are timed with: from the end of one optimizer step to the end of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.outside = 0.0  # seconds of work for the steps that was done before the first one

    def start(self) -> None:
        self.times = [time.perf_counter()]

    def step(self) -> None:
        self.times.append(time.perf_counter())

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """As the `log` of a run: called once after each step."""
        self.step()

    def probe(self, step: int) -> None:
        """As the `probe` of a run: called at step 0, when training begins, and after each step."""
        if step == 0:
            self.start()

    def seconds(self, warmup: int) -> list[float]:
        """Of each step after the warm-up, with its share of what was done before."""
        steps = len(self.times) - 1
        spans = [after - before for before, after in pairwise(self.times)]
        return [span + self.outside / steps for span in spans[warmup:]]
