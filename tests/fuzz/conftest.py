from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz import trial


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Behind trial.bounded: what does not hear signals ends the process with the place where it stands."""
    faulthandler.dump_traceback_later(600 + 600 * trial.TIMES, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not trial.COUNTS:
        return
    terminalreporter.write_sep("-", "inputs tried" + (f", ALIGN_FUZZ_SEED={trial.SEED}" if trial.TIMES > 1 else ""))
    for target, count in sorted(trial.COUNTS.items()):
        terminalreporter.write_line(
            f"{target}: {count.inputs} inputs, {count.refused} refused, {count.accepted} accepted, "
            f"slowest {count.slowest:.2f} s"
        )
    terminalreporter.write_line(f"in all: {sum(count.inputs for count in trial.COUNTS.values())} inputs")
