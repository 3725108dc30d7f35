"""The ruler: every algorithm is measured by this code, on the same held-out prompts, with the same random numbers.

Keys are defined in `docs/metrics.md`. KL, entropy and completions are those of the distribution at temperature 1 with
nothing cut off. The probe's random numbers depend on the run's seed and on nothing else, so arms of one seed, and the
steps of one run, differ by their policies only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from align.data import Data
from align.data.tokens import encode_completion, encode_prompt
from align.forward import AS_IT_IS, Batch, Divergence, Scorer, Sharpening, batch_of, divergence, score
from align.halving import Halving
from align.maths.kl import k1
from align.maths.masked import masked_sum
from align.maths.preference import accuracy
from align.maths.wins import length_controlled, wins
from align.measures import kl_fields, kl_metrics, length_metrics, sample_rows, std_metric, text_fields, text_metrics
from align.models import Policy
from align.packing import right_pad
from align.records import Completions, PreferencePair
from align.rewards import Rewards, samples_of
from align.sampling import sample
from align.schema import Probe as ProbeConfig
from align.schema import Sampling
from align.seeds import derive
from reward_models.base import RewardSource, evaluate

TOKENS = 2048  # of a forward without gradient; bounds memory
Measured = tuple[dict[str, float], list[dict[str, Any]]]


@dataclass
class Probe:
    """Measures a policy against its reference. Holds what never changes: prompts, pairs, the reference's answers."""

    cfg: ProbeConfig
    sampling: Sampling
    policy: Policy
    data: Data
    rewards: Rewards
    seed: int

    def __post_init__(self) -> None:
        self.prompts = self.data.heldout_prompts[: self.cfg.prompts]
        self.pairs = self.data.heldout_pairs[: self.cfg.pairs]
        self.neutral = replace(self.sampling, temperature=1.0, top_k=None, top_p=None, min_p=None)
        self._reference: tuple[Tensor, Tensor] | None = None  # gold and length of its own answers, [B] each
        self.train_pairs = self.data.train_pairs[: self.cfg.train_pairs or 0]
        self.halving = Halving()
        self._reference_pairs: dict[str, Tensor] = {}  # "" held out, "train_" trained on

    def measure(self, step: int) -> Measured:
        """Metrics of the policy as it is now, and one row for each completion that was looked at."""
        started = time.perf_counter()
        policy = self.policy
        policy.model.eval()
        completions = self.answers()
        if step == 0 and self.data.gold is not None:  # nothing is trained yet: these are the reference's own answers
            self._reference = self.gold(completions), completions.lengths.float()
        batch = self.batch(completions)
        found = divergence(policy.model, policy.reference, batch, self.halving, tokens=TOKENS)
        if not all(field.isfinite().all() for field in vars(found).values()):
            raise FloatingPointError("logprobs of the probe's completions are not finite")
        metrics, samples = self.judged(step, completions, found)
        metrics |= self._pairs(self.pairs) | self._pairs(self.train_pairs, "train_") | self._greedy()
        metrics["time/probe"] = time.perf_counter() - started
        return metrics, samples

    def judged(self, step: int, completions: Completions, found: Divergence | None = None) -> Measured:
        """What can be said of answers to the probe's prompts, whoever chose them; their KL where `found` has it."""
        metrics: dict[str, float] = {"probe/completions": len(completions.texts)}
        fields: dict[str, Tensor] = {}
        if found is not None:
            mask = completions.mask.to(found.logprobs.device)
            metrics |= kl_metrics(found, mask)
            fields |= kl_fields(found, mask)
        metrics |= length_metrics(completions, self.neutral.max_new_tokens) | text_metrics(completions)
        fields |= text_fields(completions)
        rewards, components = self.rewards(completions)
        if components:
            fields["reward"] = rewards
            metrics |= reward_metrics(rewards, components)
        if self.data.gold is not None:
            fields["gold"], lengths = self.gold(completions), completions.lengths.float()
            reference_gold, reference_lengths = self._reference_answers()
            fields["win"] = wins(fields["gold"], reference_gold)
            metrics |= {"reward/gold": float(fields["gold"].mean()), **std_metric("reward/gold_std", fields["gold"])}
            metrics["win/gold"] = float(fields["win"].mean())
            metrics["win/gold_lc"] = length_controlled(fields["win"], lengths - reference_lengths)
        if self.data.verifier is not None:
            fields["correct"] = self._score("verifier", self.data.verifier, completions)
            metrics["accuracy/sampled"] = float(fields["correct"].mean())
        if components and "gold" in fields:
            metrics["reward/gap"] = metrics["reward/proxy"] - metrics["reward/gold"]
        return metrics, sample_rows(step, completions, fields, components)

    def state(self) -> dict[str, Any]:
        """What later probes compare with and cannot be measured again: the answers at step 0."""
        return {"reference": self._reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._reference = state["reference"]

    @property
    def _seed(self) -> int:
        return derive(self.seed, "probe")

    def answers(self, sampled: Sharpening = AS_IT_IS) -> Completions:
        """probe.samples completions of each prompt by the policy as it is now."""
        sampling = replace(self.neutral, temperature=sampled.temperature, top_p=sampled.top_p)
        return self._finite(sample(self.policy, self.prompts, self.cfg.samples, sampling, self._seed))

    def _finite(self, answers: Completions) -> Completions:
        if not answers.logprobs.isfinite().all():
            raise FloatingPointError("the policy's logits are not finite: what it answers is no sample of anything")
        return answers

    def batch(self, completions: Completions) -> Batch:
        return batch_of(completions, self.policy.tokenizer.pad_token_id, self.policy.device)

    def _score(self, name: str, source: RewardSource, completions: Completions) -> Tensor:
        return torch.tensor(evaluate(name, source, samples_of(completions)))

    def gold(self, completions: Completions) -> Tensor:
        assert self.data.gold is not None
        return self._score("gold", self.data.gold, completions)

    def _reference_answers(self) -> tuple[Tensor, Tensor]:
        """Gold and length of the reference's answers under the same random numbers as every probe's: those of the
        probe at step 0, or sampled now when there was none."""
        if self._reference is None:
            answers = sample(self.policy, self.prompts, self.cfg.samples, self.neutral, self._seed,
                             model=self.policy.reference)  # fmt: skip
            self._reference = self.gold(answers), answers.lengths.float()
        return self._reference

    def _pairs(self, pairs: Sequence[PreferencePair], which: str = "") -> dict[str, float]:
        """The policy's implicit preference on pairs: log-ratios to the reference, not scaled by any beta."""
        if not pairs:
            return {}
        batch = pair_batch(pairs, self.policy)
        if which not in self._reference_pairs:  # the reference never changes: once is enough
            self._reference_pairs[which] = self._logprobs(self.policy.reference, batch)
        logprobs = self._logprobs(self.policy.model, batch)
        chosen, rejected = masked_sum(k1(logprobs, self._reference_pairs[which]), batch.completion_mask, -1).chunk(2)
        return {
            f"pref/{which}accuracy": float(accuracy(chosen, rejected)),
            f"pref/{which}margin": float((chosen - rejected).mean()),
            f"pref/{which}chosen_logprob": float(chosen.mean()),
            f"pref/{which}rejected_logprob": float(rejected.mean()),
        }

    def _logprobs(self, model: Any, batch: Batch) -> Tensor:
        logprobs = score(Scorer(model, 1.0), batch, self.halving, TOKENS)[0]
        if not logprobs.isfinite().all():
            raise FloatingPointError("logprobs of the probe's pairs are not finite")
        return logprobs

    def _greedy(self) -> dict[str, float]:
        if self.data.verifier is None or not self.cfg.greedy:
            return {}
        answers = self._finite(sample(self.policy, self.prompts, 1, self.neutral, self._seed, greedy=True))
        return {"accuracy/greedy": float(self._score("verifier", self.data.verifier, answers).mean())}


def reward_metrics(rewards: Tensor, components: Mapping[str, Tensor]) -> dict[str, float]:
    finite = rewards.isfinite()  # all are, unless guard.nonfinite=skip
    metrics = {"reward/proxy": float(rewards[finite].mean()), **std_metric("reward/proxy_std", rewards[finite])}
    return metrics | {f"reward/{name}": float(values[finite].mean()) for name, values in components.items()}


def pair_batch(pairs: Sequence[PreferencePair], policy: Policy) -> Batch:
    """Rows of all chosen answers, then all rejected ones."""
    prompts = [encode_prompt(policy.tokenizer, pair.prompt) for pair in pairs] * 2
    answers = [encode_completion(policy.tokenizer, pair.chosen) for pair in pairs]
    answers += [encode_completion(policy.tokenizer, pair.rejected) for pair in pairs]
    pad, device = policy.tokenizer.pad_token_id, policy.device
    ids, mask = right_pad([p + a for p, a in zip(prompts, answers, strict=True)], pad, device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return Batch(ids, mask, starts, right_pad(answers, pad, device)[1])
