from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from align.embedded import tiny_folder
from tests.vllm.fake import Fake


@pytest.fixture
def fakes() -> Iterator[Callable[..., Fake]]:
    """Makes servers, and stops them."""
    made: list[Fake] = []

    def make(**options: object) -> Fake:
        made.append(Fake(str(tiny_folder()), **options))
        return made[-1]

    yield make
    for fake in made:
        fake.stop()
