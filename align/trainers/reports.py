"""What the on-policy loop says aloud: numbers that are not finite, ratios that explode, a critic that knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from align.records import Rollout
from align.schema import Guard, Sampling
from align.trainers.learner import Outlier

TOLERANCE = 0.005  # of explained variance: a critic that starts at 0 is not yet worse than a constant
Event = Callable[..., None]  # kind, step, sentence, details


def nonfinite(rollout: Rollout, guard: Guard, step: int, event: Event) -> None:
    """Completions with a number that is not finite: stop at the first, or say which are left out (guard.nonfinite).

    Raises FloatingPointError.
    """
    for row in (~rollout.finite).nonzero().squeeze(-1).tolist():
        shown = _shown(rollout, row)
        reward = float(rollout.rewards[row])
        sentence = f"step {step + 1}: a completion has a reward ({reward:g}), logprob or value that is not finite"
        if guard.nonfinite == "stop":
            where = f"  prompt:     {shown['prompt']!r}\n  completion: {shown['completion']!r}"
            raise FloatingPointError(f"{sentence}\n{where}")
        event("nonfinite", step + 1, f"{sentence}; it is left out", **shown)


def outliers(found: Sequence[Outlier], rollout: Rollout, guard: Guard, step: int, event: Event) -> None:
    """The worst token whose log-ratio passed the guard, with its prompt."""
    if not found:
        return
    worst = max(found, key=lambda outlier: abs(outlier.log_ratio))
    event(
        "ratio",
        step + 1,
        f"step {step + 1}: a log-ratio to the policy that sampled is {worst.log_ratio:.3g} nats "
        f"(guard.log_ratio={guard.log_ratio:g}; {len({outlier.row for outlier in found})} completions pass it)",
        **_shown(rollout, worst.row),
        position=worst.position,
        log_ratio=worst.log_ratio,
    )


def critic(explained: Sequence[float], step: int, event: Event) -> None:
    """Whether the critic of the last quarter of the rollouts so far predicted anything."""
    late = explained[-max(len(explained) // 4, 1) :]
    if not late or (mean := sum(late) / len(late)) >= -TOLERANCE:
        return
    event(
        "critic",
        step,
        f"step {step}: the critic's explained variance is {mean:.2f} over {len(late)} rollouts: as a baseline it is "
        "worse than a constant. Try algo.critic.warmup_steps, another algo.critic.lr, algo.critic.init=zero or reward",
        explained_variance=mean,
    )


def servers(said: Sequence[str], gap: float, sampling: Sampling, step: int, event: Event) -> None:
    """What went wrong with servers and was asked again; and whether what they sampled is the policy's at all.

    Raises FloatingPointError when sampler and trainer are further apart than declared: nothing was trained on that.
    """
    for sentence in said:
        event("server", step + 1, f"step {step + 1}: {sentence}; it was asked again or elsewhere")
    assert sampling.vllm is not None
    if not gap <= sampling.vllm.gap:
        raise FloatingPointError(
            f"step {step + 1}: the servers' logprobs differ from the trainer's by {gap:.3g} nats per token "
            f"(sampling.vllm.gap={sampling.vllm.gap:g}): they have other weights, or sample otherwise; nothing was "
            "updated with it"
        )


def _shown(rollout: Rollout, row: int) -> dict[str, Any]:
    prompt = rollout.completions.prompts[row]
    return {"prompt_id": prompt.id, "prompt": prompt.text, "completion": rollout.completions.texts[row]}
