from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads only get in each other's way on matrices this small: 10 times slower on a busy two-core machine."""
    import torch

    torch.set_num_threads(1)
