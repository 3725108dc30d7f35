"""Where an experiment is to run: on how many devices, with which split, in which dtype."""

from __future__ import annotations

from dataclasses import dataclass

from align.memory.states import Shares, shares
from align.refusals import need, one_of

NUMBERS = {"auto": 2, "bfloat16": 2, "float32": 4}  # bytes of one


@dataclass(frozen=True)
class Place:
    gpus: int  # 0: one process on a CPU
    zero: int
    number: int  # bytes of one in the base's dtype
    prompt: int  # tokens
    completion: int | None  # tokens; None: as many as sampling allows
    memory: float | None  # GB of a device

    @property
    def ranks(self) -> int:
        return max(self.gpus, 1)

    @property
    def split(self) -> Shares:
        return shares(self.zero)

    def share(self, size: float, split: bool) -> float:
        """Bytes on each device of what is split over them or not."""
        return size / self.ranks if split else size

    def check(self) -> None:
        """Raises ConfigError."""
        need(self.gpus >= 0, "gpus", self.gpus, "must be >= 0; 0 is one process on a CPU")
        need(self.zero in range(4), "zero", self.zero, "must be 0, 1, 2 or 3")
        need(not self.zero or self.gpus > 1, "zero", self.zero,
             f"has nothing to split on gpus={self.gpus}; give gpus=2 or more, or zero=0")  # fmt: skip
        need(self.prompt >= 1, "prompt_tokens", self.prompt, "must be >= 1")
        need(self.completion is None or self.completion >= 1, "completion_tokens", self.completion, "must be >= 1")
        need(self.memory is None or self.memory > 0, "gb", self.memory, "must be > 0: a device's memory in GB")


def bytes_of(dtype: str) -> int:
    one_of(dtype, list(NUMBERS), "dtype")
    return NUMBERS[dtype]
