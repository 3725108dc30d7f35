"""What a reward is: samples in, one finite float per sample out, and a clear error for anything else."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AGAIN = 1.0  # second: for a function that catches every exception
RewardSource = Callable[[Sequence["Sample"]], Sequence[float]]


@dataclass(frozen=True)
class Sample:
    """One completion as a reward sees it. Tokens are the policy's own: nothing is tokenised again.

    `completion_ids` ends with EOS exactly when `finished`.
    """

    prompt: str
    completion: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    finished: bool
    info: Mapping[str, Any]


class RewardError(ValueError):
    """A reward source failed or returned something that is not a reward."""


def weighted_sum(
    sources: Mapping[str, tuple[float, RewardSource]], samples: Sequence[Sample], *, finite: bool = True
) -> tuple[list[float], dict[str, list[float]]]:
    """Total reward and its unweighted components.

        R_i = sum_k w_k r_k(sample_i)

    `sources` maps a name to (weight, source). Raises RewardError naming the source, the prompt and the completion
    when a source raises, or returns the wrong count, None, something that is not a number or, unless finite=False, NaN
    or an infinity.
    """
    components = {name: evaluate(name, source, samples, finite=finite) for name, (_, source) in sources.items()}
    totals = [sum(weight * components[name][i] for name, (weight, _) in sources.items()) for i in range(len(samples))]
    return totals, components


def evaluate(name: str, source: RewardSource, samples: Sequence[Sample], *, finite: bool = True) -> list[float]:
    """Call one source and check what it returns. Raises RewardError."""
    if not samples:
        return []
    try:
        values = source(samples)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward '{name}' raised {type(error).__name__}: {error}\n{_culprit(name, source, samples)}"
        ) from error
    many = _length(values)
    if many is None:
        raise RewardError(
            f"reward '{name}' returned {_repr(values)}; expected {len(samples)} floats, one per completion"
        )
    if many != len(samples):
        raise RewardError(f"reward '{name}' returned {many} values for {len(samples)} completions")
    return [_checked(name, value, sample, finite) for value, sample in zip(values, samples, strict=True)]


def _length(values: Any) -> int | None:
    """Of a list, tuple, array or tensor; None for what has no order that is its completions'."""
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__getitem__"):
        return None
    try:
        return len(values)
    except Exception:  # a tensor without dimensions; whatever a class of the user's raises
        return None


def within(seconds: float | None, name: str, source: RewardSource) -> RewardSource:
    """The source, given up with a RewardError when it has not returned after so many seconds.

    By an alarm, which Python code, a wait for a server and a regular expression hear, and a long computation in C does
    not. Without a limit where there are no alarms: on Windows, and outside the main thread.
    """
    if seconds is None or not hasattr(signal, "setitimer"):
        return source

    def limited(samples: Sequence[Sample]) -> Sequence[float]:
        def give_up(*_: Any) -> None:
            raise RewardError(f"reward '{name}' did not return within {seconds:g} s for {len(samples)} completions "
                              "(reward_seconds)")  # fmt: skip

        if threading.current_thread() is not threading.main_thread():
            return source(samples)
        before = signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            return source(samples)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return limited


def _checked(name: str, value: Any, sample: Sample, finite: bool) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError  # float("5") would work, and "good" would not: texts are refused whatever they say
        number = float(value)
    except Exception:  # whatever `__float__` of an object raises; 10**400 is an OverflowError
        raise RewardError(f"reward '{name}' returned {_repr(value)}, which is not a number\n{_show(sample)}") from None
    if finite and not math.isfinite(number):
        raise RewardError(f"reward '{name}' returned {number}, which is not finite\n{_show(sample)}")
    return number


def _repr(value: Any, width: int = 300) -> str:
    try:
        said = repr(value)
    except Exception:  # an integer of more digits than Python prints, an object that cannot say what it is
        said = f"an object of {type(value).__name__}"
    return said if len(said) <= width else f"{said[:width]}..."


def _culprit(name: str, source: RewardSource, samples: Sequence[Sample]) -> str:
    """Which sample makes the source raise: asked one by one, only after the whole batch has failed."""
    for sample in samples:
        try:
            source([sample])
        except Exception:
            return _show(sample)
    return "no single completion raises on its own; the batch as a whole does"


def _show(sample: Sample, width: int = 300) -> str:
    def clip(text: str) -> str:
        return repr(text if len(text) <= width else text[:width] + "...")

    return f"  prompt:     {clip(sample.prompt)}\n  completion: {clip(sample.completion)}"
