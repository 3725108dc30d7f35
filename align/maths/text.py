"""Repetition within completions and diversity across them, on token ids. Plain Python: counts of tuples, no tensors."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

Row = Sequence[int]
ORDERS = (1, 2, 3, 4)


def ngrams(row: Row, n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def repeated(row: Row, n: int = 3) -> float | None:
    """rep-n: 1 - distinct n-grams / n-grams of one completion (arXiv:1908.04319); None with fewer than n tokens."""
    grams = ngrams(row, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(rows: Sequence[Row], n: int = 2) -> float | None:
    """distinct-n: distinct n-grams / n-grams of all completions together (arXiv:1510.03055); None without any."""
    counts = Counter(gram for row in rows for gram in ngrams(row, n))
    return len(counts) / counts.total() if counts else None


def self_bleu(rows: Sequence[Row]) -> float | None:
    """Mean BLEU-4 of each completion against all others (arXiv:1802.01886); None where fewer than two have a token.

        BLEU_i = brevity_i * exp(1/4 sum_n log p_n)
        p_1    = clipped matches / n-grams, p_n = (clipped matches + 1) / (n-grams + 1) for n > 1 (Lin & Och 2004)

    An n-gram's matches are clipped at the most that any single other completion has of it. brevity_i is
    exp(1 - r / c) below the length r of the other completion closest to the own length c (the shorter of two), else 1.
    Only the largest and second largest count of each n-gram are kept, so the cost is linear in the tokens.
    """
    rows = [row for row in rows if row]
    if len(rows) < 2:
        return None
    counts = [{n: Counter(ngrams(row, n)) for n in ORDERS} for row in rows]
    most = {n: _two_largest([count[n] for count in counts]) for n in ORDERS}
    lengths = sorted(map(len, rows))
    return math.fsum(
        _brevity(len(row), lengths) * _geometric_mean([_precision(count[n], most[n], n) for n in ORDERS])
        for row, count in zip(rows, counts, strict=True)
    ) / len(rows)


def _two_largest(counts: Sequence[Counter[tuple[int, ...]]]) -> dict[tuple[int, ...], tuple[int, int]]:
    largest: dict[tuple[int, ...], tuple[int, int]] = {}
    for count in counts:
        for gram, times in count.items():
            first, second = largest.get(gram, (0, 0))
            largest[gram] = (times, first) if times > first else (first, max(second, times))
    return largest


def _precision(count: Counter[tuple[int, ...]], most: dict[tuple[int, ...], tuple[int, int]], n: int) -> float:
    matches = 0
    for gram, times in count.items():
        first, second = most[gram]
        matches += min(times, second if times == first else first)  # the most among the others
    smooth = int(n > 1)
    return (matches + smooth) / (count.total() + smooth)


def _brevity(own: int, lengths: Sequence[int]) -> float:
    """`lengths` are those of all completions, sorted; one of them is the own."""
    place = bisect_left(lengths, own)
    others = [*lengths[max(place - 1, 0) : place], *lengths[place + 1 : place + 2]]
    closest = min(others, key=lambda length: (abs(length - own), length))
    return math.exp(1 - closest / own) if own < closest else 1.0


def _geometric_mean(precisions: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, precisions)) / len(precisions)) if min(precisions) > 0 else 0.0
