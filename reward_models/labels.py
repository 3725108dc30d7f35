"""Preference labels drawn from gold, by one annotator or by a panel whose members weigh its parts differently.

    P(first preferred) = (1 - 2 flips) sigma(sharpness * gold_gap + length_bias * length_gap) + flips

The gaps are first minus second, in within-prompt SDs. One annotator's gold is gold itself. Of a panel of N, annotator i
weighs component k by

    w_ik = w_k x_ik / mean_j x_jk,      x_ik = exp(0.6 z_ik), z standard normal

so that the panel's mean is gold, and each member's opinion differs from it (AlpacaFarm saw over-optimisation only with
annotators that differ: arXiv:2305.14387). A pair is labelled by one member, drawn by the seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from reward_models.annotator import WEIGHTS, Answer, GoldScale, gold

MAX_PAIRS_PER_PROMPT = 4  # more pairs of the same answers add little: information is in distinct answers
# Ours: at sharpness 1.5 two members agree in 66 % of pairs whose components are normal and independent, as two people
# do in AlpacaFarm (arXiv:2305.14387); without jitter it would be 71 %.
JITTER = 0.6


@dataclass(frozen=True)
class LabelSettings:
    """Who labels, and how. `pairs` at most; sharpness may be inf (always the better one by the annotator's gold).

    `similarity` keeps the pairs of a pool from one quantile to another by how alike their answers are.
    """

    pairs: int
    annotators: int
    sharpness: float
    flips: float
    length_bias: float
    seed: int
    similarity: tuple[float, float] | None = None


@dataclass(frozen=True)
class LabelledPair:
    prompt_id: str
    chosen: Answer
    rejected: Answer
    gold_margin: float  # gold of chosen minus gold of rejected, without noise: < 0 where the label is wrong
    annotator: int  # whose label it is, counted from 0


@dataclass(frozen=True)
class Labelled:
    """The pairs, and what was left aside on the way to them."""

    pairs: tuple[LabelledPair, ...]
    available: int  # disjoint pairs the pool gives, of those asked for by similarity
    identical: int  # pairs left out since both answers read the same


def panel(annotators: int, seed: int) -> tuple[dict[str, float], ...]:
    """Weights of gold's components for each annotator, of the module's first lines; of one alone they are gold's."""
    drawn = []
    for number in range(annotators):
        rng = random.Random(f"{seed}/annotator/{number}")
        drawn.append({name: math.exp(JITTER * rng.gauss(0.0, 1.0)) for name in WEIGHTS})
    means = {name: math.fsum(factors[name] for factors in drawn) / annotators for name in WEIGHTS}
    return tuple({name: w * (factors[name] / means[name]) for name, w in WEIGHTS.items()} for factors in drawn)


def label_probability(gold_gap: float, length_gap: float, settings: LabelSettings) -> float:
    """P(first preferred); gaps are first minus second, in within-prompt SDs.

    P = (1 - 2 flips) sigma(sharpness * gold_gap + length_bias * length_gap) + flips
    """
    bias = settings.length_bias * length_gap
    if math.isinf(settings.sharpness):  # inf * 0 is no number: equal gold leaves the choice to length
        logit = math.copysign(math.inf, gold_gap) if gold_gap else bias
    else:
        logit = settings.sharpness * gold_gap + bias
    return (1 - 2 * settings.flips) * 0.5 * (1 + math.tanh(logit / 2)) + settings.flips


def label_pairs(pool: Mapping[str, Sequence[Answer]], scale: GoldScale, settings: LabelSettings) -> Labelled:
    """Up to `settings.pairs` labelled pairs from the finished answers of a pool (prompt id -> answers).

    At most 4 disjoint pairs per prompt, one per prompt before the second of any. Pairing, order and the random number
    of each label depend on `seed` alone: two arms that differ in annotators, sharpness, flips or length bias label the
    same pairs with the same luck, and fewer pairs are a subset of more.
    """
    members = panel(settings.annotators, settings.seed)
    rounds: list[list[LabelledPair]] = [[] for _ in range(MAX_PAIRS_PER_PROMPT)]
    identical = 0
    for prompt_id in sorted(pool, key=lambda name: random.Random(f"{settings.seed}/order/{name}").random()):
        rng = random.Random(f"{settings.seed}/{prompt_id}")
        who = random.Random(f"{settings.seed}/who/{prompt_id}")  # its own stream: a panel leaves pairs and luck alone
        answers = [answer for answer in pool[prompt_id] if answer.finished]
        rng.shuffle(answers)
        couples = list(zip(answers[::2], answers[1::2], strict=False))
        different = [(one, two) for one, two in couples if one.text.strip() != two.text.strip()]
        identical += len(couples) - len(different)
        for turn, (one, two) in zip(rounds, different, strict=False):
            number = who.randrange(settings.annotators)
            opinion = gold(one, scale, members[number]) - gold(two, scale, members[number])
            gaps = opinion / scale.sd_gold, (one.tokens - two.tokens) / scale.sd_length
            first = rng.random() < label_probability(*gaps, settings)
            chosen, rejected = (one, two) if first else (two, one)
            turn.append(LabelledPair(prompt_id, chosen, rejected, gold(chosen, scale) - gold(rejected, scale), number))
    pairs = [pair for turn in rounds for pair in turn]
    if settings.similarity is not None:
        pairs = _banded(pairs, *settings.similarity)
    return Labelled(tuple(pairs[: settings.pairs]), len(pairs), identical)


def similarity(one: str, two: str) -> float:
    """2 M / T, M the words in common runs and T all words of both (Ratcliff & Obershelp): 1 are equal, 0 share none.

    The same whichever of the two comes first.
    """
    first, second = (text.split() for text in sorted((one, two)))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def _banded(pairs: Sequence[LabelledPair], low: float, high: float) -> list[LabelledPair]:
    """The pairs from one quantile of similarity to another, in the order given. Labels leave the bands alone."""
    alike = [similarity(pair.chosen.text, pair.rejected.text) for pair in pairs]
    order = sorted(range(len(pairs)), key=alike.__getitem__)
    kept = set(order[round(low * len(pairs)) : round(high * len(pairs))])
    return [pair for number, pair in enumerate(pairs) if number in kept]
