from __future__ import annotations

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # behind `&` in a script; what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads only get in each other's way on matrices this small: 10 times slower on a busy two-core machine."""
    import torch

    torch.set_num_threads(1)
