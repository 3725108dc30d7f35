"""The synthetic annotator: a gold score made of known parts. Preference labels are drawn from it (labels.py).

    G(x, y) = sum_k w_k clip((c_k - mean_k) / sd_k, -3, 3)  -  slope * (clip(n, p10, p90) - mean_n)

    component   what it is                                                      weight
    con         the constraint of the prompt is kept, 0 or 1                      1.0
    rel         topic mentioned, and up to three keywords, 0..1                   0.7
    end         finished, and the last character is . ! or ?, 0 or 1              0.4
    rep         -max(0, rep3 - 0.1) / 0.1, rep3 = share of repeated trigrams      1.0
    len_hinge   0 inside the base's [p10, p90] tokens, falling linearly outside   0.5

n is the number of tokens, EOS included; means, SDs and percentiles are those of the base pool (what the start model
says). The last term makes gold orthogonal to length within a prompt: a plain sum had r(gold, length) = -.21, and DPO on
it would shorten answers and cancel the very bias under study. rep and len_hinge are almost constant on the base pool
*on purpose*: a proxy cannot learn them there, so a policy that leaves the base's range is punished by gold alone
(extremal Goodhart).

Fluency (`flu`, weight .3: the base's mean log-probability per token inside a band) needs a model forward and is left to
a later version; without it gold does not see ungrammatical text that stays on topic.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from reward_models.base import RewardError, RewardSource, Sample
from reward_models.verifiers import constraint_kept, ends_cleanly

WEIGHTS = {"con": 1.0, "rel": 0.7, "end": 0.4, "rep": 1.0, "len_hinge": 0.5}
CLIP = 3.0
MIN_SD = 0.03  # rep's SD on a base pool of SmolLM2-135M; without a floor one repeated trigram could be worth 3 SD
ENOUGH_KEYWORDS = 3


@dataclass(frozen=True)
class Answer:
    """What gold reads of a completion; a pool keeps no token ids, only their number (EOS included)."""

    text: str
    tokens: int
    finished: bool
    info: Mapping[str, Any]

    @classmethod
    def of(cls, sample: Sample) -> Self:
        return cls(sample.completion, len(sample.completion_ids), sample.finished, sample.info)


@dataclass(frozen=True)
class GoldScale:
    """The base pool's statistics that turn components into gold. Frozen once: gold never moves with the policy."""

    means: Mapping[str, float]
    sds: Mapping[str, float]
    p10: float  # tokens
    p90: float  # tokens
    mean_length: float  # tokens, clipped to [p10, p90]
    slope: float  # gold per token, within prompt, before the correction
    sd_gold: float  # within prompt, finished answers: the unit of sharpness and of effects on gold
    sd_length: float  # tokens, within prompt, finished answers: the unit of length bias

    def to_json(self) -> str:
        """Canonical: equal scales give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises RewardError when the text is not a scale."""
        try:
            values = json.loads(text)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise RewardError(f"not a gold scale: {type(error).__name__}: {error}") from None

    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


# --- the parts of gold ---


def relevance(text: str, words: Sequence[str], keywords: Sequence[str]) -> float:
    """Half for mentioning the topic, half for keywords, saturating at three: 0.5 [topic] + 0.5 min(1, hits / 3)."""
    said = " ".join(["", *re.findall(r"\w+", text.lower()), ""])
    hits = sum(_mentions(said, keyword) for keyword in keywords)
    return 0.5 * any(_mentions(said, word) for word in words) + 0.5 * min(1.0, hits / ENOUGH_KEYWORDS)


def _mentions(said: str, word: str) -> bool:
    """`said`: words with a space on either side of each. A final * matches any ending, otherwise only a plural does."""
    if word.endswith("*"):
        return f" {word[:-1]}" in said
    return any(f" {word}{ending} " in said for ending in ("", "s", "es"))


def rep3(text: str) -> float:
    """1 - distinct trigrams / trigrams, over words and punctuation marks; 0 below three of them."""
    units = re.findall(r"\w+|[^\w\s]", text.lower())
    trigrams = list(zip(units, units[1:], units[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def components(answer: Answer, p10: float, p90: float) -> dict[str, float]:
    """The raw components c_k. Raises RewardError when the prompt is none of the annotator's."""
    info = answer.info
    missing = [key for key in ("words", "keywords", "constraint") if key not in info]
    if missing:
        raise RewardError(f"gold needs info[{missing[0]!r}] of every prompt: it is defined for data=annotator only")
    return {
        "con": float(constraint_kept(answer.text, info)),
        "rel": relevance(answer.text, info["words"], info["keywords"]),
        "end": float(answer.finished and ends_cleanly(answer.text)),
        "rep": -max(0.0, rep3(answer.text) - 0.1) / 0.1,
        "len_hinge": -max(0.0, p10 - answer.tokens, answer.tokens - p90) / (p90 - p10),
    }


def gold(answer: Answer, scale: GoldScale, weights: Mapping[str, float] = WEIGHTS) -> float:
    """G of the module's first lines; with other weights, what somebody thinks who cares for other parts of it."""
    raw = components(answer, scale.p10, scale.p90)
    # Clipped: beyond the base's range the fitted line is an extrapolation that would pay for length, or for brevity.
    centred = min(max(answer.tokens, scale.p10), scale.p90) - scale.mean_length
    return _weighted(raw, scale.means, scale.sds, weights) - scale.slope * centred


def _weighted(
    raw: Mapping[str, float], means: Mapping[str, float], sds: Mapping[str, float], weights: Mapping[str, float]
) -> float:
    z = {name: (raw[name] - means[name]) / sds[name] for name in weights}
    return sum(weight * min(CLIP, max(-CLIP, z[name])) for name, weight in weights.items())


def gold_components(sample: Sample, scale: GoldScale) -> dict[str, float]:
    """The raw components of one sample, and `gold`."""
    answer = Answer.of(sample)
    return {**components(answer, scale.p10, scale.p90), "gold": gold(answer, scale)}


def gold_source(scale: GoldScale) -> RewardSource:
    """Gold as a reward source: for measuring, and for the oracle arm that is trained on it."""

    def source(samples: Sequence[Sample]) -> list[float]:
        return [gold(Answer.of(sample), scale) for sample in samples]

    return source


# --- the scale ---


def fit_scale(groups: Sequence[Sequence[Answer]]) -> GoldScale:
    """Fit on the base pool; one group per prompt.

    Means, SDs and percentiles are over all answers, since gold must also judge truncated ones. Slope and within-prompt
    SDs are over finished answers, the only ones that are labelled (truncation ties `end` to length). The slope is the
    one that leaves no covariance with length within prompts:

        slope = cov(G, n) / cov(clip(n, p10, p90), n)

    Raises RewardError when the pool is too small or too uniform to say anything.
    """
    everything = [answer for group in groups for answer in group]
    if all(sum(answer.finished for answer in group) < 2 for group in groups):
        raise RewardError(
            f"the pool has no prompt with two finished answers ({len(everything)} answers, "
            f"{sum(answer.finished for answer in everything)} finished): raise data.pool.max_new_tokens"
        )
    lengths = np.array([answer.tokens for answer in everything], dtype=float)
    p10, p90 = (_rounded(value) for value in np.percentile(lengths, [10, 90]))
    if p90 <= p10:
        raise RewardError(f"nearly all answers of the pool have {p10:g} tokens: gold has no scale of length")
    graded = [[(answer, components(answer, p10, p90)) for answer in group] for group in groups]
    table = {name: [raw[name] for group in graded for _, raw in group] for name in WEIGHTS}
    means = {name: _rounded(float(np.mean(values))) for name, values in table.items()}
    sds = {name: _rounded(max(float(np.std(values)), MIN_SD)) for name, values in table.items()}
    finished = [kept for group in graded if len(kept := [pair for pair in group if pair[0].finished]) >= 2]
    score = _within([[_weighted(raw, means, sds, WEIGHTS) for _, raw in group] for group in finished])
    tokens = _within([[float(answer.tokens) for answer, _ in group] for group in finished])
    clipped = _within([[float(np.clip(answer.tokens, p10, p90)) for answer, _ in group] for group in finished])
    if not clipped @ tokens > 0 or not score @ score > 0:
        raise RewardError("the pool's answers to a prompt differ neither in length nor in gold: sample more of them")
    slope = (score @ tokens) / (clipped @ tokens)
    corrected = score - slope * clipped
    freedom = len(tokens) - len(finished)
    return GoldScale(
        means,
        sds,
        p10,
        p90,
        _rounded(np.clip(lengths, p10, p90).mean()),
        _rounded(slope),
        _rounded(math.sqrt(corrected @ corrected / freedom)),
        _rounded(math.sqrt(tokens @ tokens / freedom)),
    )


def _within(groups: Sequence[Sequence[float]]) -> np.ndarray:
    """All values as deviations from their prompt's mean."""
    return np.concatenate([np.array(group) - np.mean(group) for group in groups])


def _rounded(value: float) -> float:
    """10 digits: the digest must not depend on the order in which a machine adds."""
    return float(f"{value:.10g}")
