"""Records that stay in their file until they are asked for: of a gigabyte of pairs a run holds some bytes a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from align.data.examples import Example

T = TypeVar("T")


class Stored(Sequence[T]):
    """What `make` makes of the examples that `read` reads, anew each time that they are asked for. A slice is a tuple.

    places   int64 [N], what `read` finds an example by
    ids      uint64 [N], their prompts' ids
    """

    def __init__(self, read: Callable[[int], Example], places: NDArray[Any], ids: NDArray[Any], make: Callable[..., T]):
        self._read, self._places, self._ids, self._make = read, places, ids, make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[T, ...]: ...
    def __getitem__(self, at: int | slice) -> T | tuple[T, ...]:
        if isinstance(at, slice):
            return tuple(self._made(place) for place in self._places[at])
        return self._made(self._places[at])

    @property
    def topics(self) -> Iterator[str]:
        """The prompts' ids, by which users' prompts are split, without reading anything."""
        return (prompt_id(number) for number in self._ids)

    def _made(self, place: Any) -> T:
        return self._make(self._read(int(place)))


def prompt_id(number: Any) -> str:
    return f"{int(number):016x}"


def first_of_each(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Where each id stands first, in that order."""
    return np.sort(np.unique(ids, return_index=True)[1])
