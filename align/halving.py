"""Passes that run out of memory are made again with half of the rows.

How many rows are in one is a matter of memory alone (a test of every loss says so), and a run of hours should not end
because one batch was longer than those before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


class TooLarge(Exception):
    """A pass of `rows` rows ran out of memory, and there is a smaller one."""

    def __init__(self, rows: int):
        super().__init__(f"a pass of {rows} rows ran out of memory")
        self.rows = rows


class Halving:
    """How many rows a pass has: `rows` (None: whatever fits its tokens), and half of a pass that was too large from
    then on; of `whole` rows a number that they can be divided into. Not with several processes (`alone` false): the
    others would wait for the one that begins anew."""

    def __init__(self, rows: int | None = None, alone: bool = True, whole: int = 0):
        self.rows, self.alone, self.whole = rows, alone, whole
        self.news: list[tuple[int, int]] = []  # of each halving since the last report: rows before and after

    @contextmanager
    def trying(self, rows: int) -> Iterator[None]:
        """Around a pass of so many rows. Raises TooLarge where it ran out of memory; that of one row is as it was."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not self.alone or not out_of_memory(error):
                raise
            raise TooLarge(rows) from error

    def halve(self, rows: int) -> None:
        """Called outside of `except`: the error holds on to the frames of the pass, and so to its tensors."""
        fewer = next(fewer for fewer in range(rows // 2, 0, -1) if self.whole % fewer == 0)
        if self.rows is None or fewer < self.rows:  # a part of rows that are short may be larger than those before
            self.rows = fewer
            self.news.append((rows, fewer))
        clear_device_cache(garbage_collection=True)

    def report(self, step: int, event: Callable[..., None]) -> None:
        """Of each halving since the last report an event: its kind, step, sentence and details."""
        for before, after in self.news:
            event("memory", step, f"step {step}: a pass of {before} rows ran out of memory; from here on it is made of "
                  f"{after}, with the same result but for rounding and a dropout's draws",
                  rows=before, rows_now=after)  # fmt: skip
        self.news.clear()


def out_of_memory(error: Exception) -> bool:
    # oneDNN and C++ say it in words of their own, where the allocator of torch was not asked
    own = isinstance(error, MemoryError) or any(words in str(error) for words in ("bad_alloc", "could not create a "))
    return own or (isinstance(next(iter(error.args), None), str) and should_reduce_batch_size(error))
