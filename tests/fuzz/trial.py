"""One bad input: refused in words or taken, counted, and never a traceback, a hang or a half-written file.

`python -m pytest tests/fuzz` is the short version, the same every time. `ALIGN_FUZZ=20 python -m pytest tests/fuzz`
tries 20 times as many inputs, at random; ALIGN_FUZZ_SEED repeats the one whose seed was printed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("ALIGN_FUZZ", "1"))
SEED = int(os.environ.get("ALIGN_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
HANG_S = 60  # of wall time: a busy machine may take ten times as long as an idle one
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)


@dataclass
class Count:
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0  # seconds of CPU


COUNTS: dict[str, Count] = defaultdict(Count)


class Hang(BaseException):
    """Not an Exception: no handler of the code under test may take it for one of its own."""


def fuzzed(examples: int, **drawn: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """A test of many drawn inputs: in CI always the same ones, with ALIGN_FUZZ=N others, N times as many.

    Without arguments the test gets `rng`, a random.Random whose every draw hypothesis knows and can shrink.
    """
    drawn = drawn or {"rng": st.randoms(use_true_random=False)}
    known = settings(
        max_examples=examples * TIMES,
        deadline=HANG_S * 1000,
        derandomize=TIMES == 1,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Any) -> Any:
        made = known(given(**drawn)(test))
        return made if TIMES == 1 else seed(SEED)(made)

    return decorate


def attempt(
    target: str,
    work: Callable[[], Any],
    refusals: type[Exception] | tuple[type[Exception], ...] = (),
    most_s: float = HANG_S,
) -> Any:
    """What `work` gives for one input; None when it is refused, by one sentence. Anything else it raises passes on.

    most_s: seconds of CPU that it may take
    """
    count, started, found, message = COUNTS[target], time.process_time(), None, None
    count.inputs += 1
    try:
        with bounded():
            found = work()
    except refusals as error:
        message = str(error)
    taken = time.process_time() - started
    count.slowest = max(count.slowest, taken)
    assert taken <= most_s, f"{taken:.1f} s of CPU"
    if message is None:
        count.accepted += 1
        return found
    said(message)
    count.refused += 1
    return None


@contextmanager
def bounded() -> Iterator[None]:
    """Raises Hang where the inside takes too long; regular expressions can be interrupted too."""

    def stop(*_: Any) -> None:
        raise Hang(f"no end after {HANG_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said(message: str) -> None:
    """A refusal is one sentence on one line; a reward's shows prompt and completion below."""
    sentence = message.partition("\n  prompt:")[0].strip()
    assert sentence, "an empty message"
    assert "Traceback" not in message and "\n" not in sentence, message


def nothing_half_written(folder: Path) -> None:
    left = [path for path in folder.rglob("*.tmp*") if path.is_file()]
    assert not left, f"half-written: {left}"
