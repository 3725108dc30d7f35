"""Rewards that misbehave, as rewards of users do."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models.base import Sample

CALLS: list[int] = []  # cleared by the test
NOT_CALLABLE = 3


def interrupted_on_the_third_call(samples: Sequence[Sample]) -> list[float]:
    """The probe at step 0 is the first."""
    return interrupted(samples, 3)


def interrupted_on_the_sixth_call(samples: Sequence[Sample]) -> list[float]:
    return interrupted(samples, 6)


def interrupted(samples: Sequence[Sample], call: int) -> list[float]:
    CALLS.append(len(samples))
    if len(CALLS) == call:
        raise KeyboardInterrupt
    return [float(sum(sample.completion_ids) % 2) for sample in samples]


def never_returns(samples: Sequence[Sample]) -> list[float]:
    while True:
        time.sleep(0.01)


def hears_nothing(samples: Sequence[Sample]) -> list[float]:
    """Goes on after the first exception, whatever it is."""
    with contextlib.suppress(Exception):
        never_returns(samples)
    return never_returns(samples)


def backtracks(samples: Sequence[Sample]) -> list[float]:
    return [float(bool(re.fullmatch(r"(a|a)*b", "a" * 60))) for _ in samples]


def raises(samples: Sequence[Sample]) -> list[float]:
    raise ZeroDivisionError("division by zero")


def nan(samples: Sequence[Sample]) -> list[float]:
    return [0.0] * (len(samples) - 1) + [float("nan")]


def infinite(samples: Sequence[Sample]) -> list[float]:
    return [float("-inf")] * len(samples)


def nothing(samples: Sequence[Sample]) -> None:
    return None


def none_for_each(samples: Sequence[Sample]) -> list[None]:
    return [None] * len(samples)


def one_too_few(samples: Sequence[Sample]) -> list[float]:
    return [0.0] * (len(samples) - 1)


def one_number(samples: Sequence[Sample]) -> float:
    return 1.0


def words(samples: Sequence[Sample]) -> list[str]:
    return ["good"] * len(samples)


def digits(samples: Sequence[Sample]) -> list[str]:
    """What a judge model writes; a number only by luck."""
    return ["5"] * len(samples)


def generator(samples: Sequence[Sample]) -> Any:
    return (0.0 for _ in samples)


def takes_two(samples: Sequence[Sample], tokenizer: Any) -> list[float]:
    return [0.0] * len(samples)


def killed_once(samples: Sequence[Sample]) -> list[float]:
    """The first process that asks a third time is killed; KILLED_ONCE names the file that remembers it."""
    CALLS.append(len(samples))
    remembered = Path(os.environ["KILLED_ONCE"])
    if len(CALLS) == 3 and not remembered.exists():
        remembered.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(sum(sample.completion_ids) % 2) for sample in samples]
