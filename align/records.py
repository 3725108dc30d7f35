"""The records that flow through an experiment. All are frozen: a stage makes new ones, it never edits old ones.

Letters: B sequences, K completions per prompt, P prompt tokens, T completion tokens.
Masks are bool, True means "counts".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One thing to answer. `topic` decides the split (its hash), `info` is what a verifier or the gold score reads."""

    id: str
    messages: tuple[Mapping[str, str], ...]  # chat turns {"role", "content"}; the last one is the user's
    topic: str
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt and which was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Demonstration:
    """One answer to imitate (SFT)."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class Completions:
    """What a policy said: K completions of each prompt, prompt-major (row = prompt * K + sample).

    A finished completion ends with EOS, which counts as its last token; a truncated one has no EOS.
    """

    prompts: tuple[Prompt, ...]  # [B], each prompt repeated K times
    prompt_ids: tuple[tuple[int, ...], ...]  # [B] of P_i
    ids: Tensor  # [B, T] int64; what stands after the last counted token means nothing
    mask: Tensor  # [B, T] bool
    finished: Tensor  # [B] bool, ended with EOS before the limit
    logprobs: Tensor  # [B, T] float32, of the sampling distribution, 0 where mask is False
    texts: tuple[str, ...]  # [B], decoded without special tokens

    @property
    def lengths(self) -> Tensor:
        """[B] completion tokens, EOS included."""
        return self.mask.sum(-1)


@dataclass(frozen=True)
class Rollout:
    """Completions with everything a loss needs to know about them."""

    completions: Completions
    rewards: Tensor  # [B] float32 from the reward source, before it is scaled and before any KL term
    components: Mapping[str, Tensor]  # name -> [B], the terms the reward is made of, unweighted
    old_logprobs: Tensor | None = (
        None  # [B, T] of the policy that sampled, by the trainer's own forward; None if unused
    )
    reference_logprobs: Tensor | None = None  # [B, T], None when the KL is not used
    values: Tensor | None = None  # [B, T] of the critic before the update: V_t is the value before token t

    @property
    def finite(self) -> Tensor:
        """[B] bool: reward, logprobs (the sampler's too: it draws any token from a NaN) and values are all finite."""
        known = (self.completions.logprobs, self.old_logprobs, self.reference_logprobs, self.values)
        fields = [f for f in known if f is not None]
        found = self.rewards.isfinite()
        for values in fields:
            found = found & (values.isfinite() | ~self.completions.mask).all(-1)
        return found


@dataclass(frozen=True)
class Targets:
    """What the estimator makes of a rollout."""

    advantages: Tensor  # [B, T]
    returns: Tensor | None  # [B, T], what the critic is trained on
    mask: Tensor  # [B, T] bool, tokens that enter the loss
    usable: Tensor  # [B] bool, completions that may be trained on: everything about them is finite
    stats: Mapping[str, float]  # what to log about the estimate
