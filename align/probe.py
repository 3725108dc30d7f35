"""The ruler: every algorithm is measured by this code, on the same held-out prompts, with the same random numbers.

Keys are defined in `docs/metrics.md`. KL, entropy and completions are those of the distribution at temperature 1 with
nothing cut off. The probe's random numbers depend on the run's seed and on nothing else, so arms of one seed, and the
steps of one run, differ by their policies only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from align.data import Data
from align.data.tokens import encode_completion, encode_prompt
from align.forward import Batch, Divergence, Scorer, batch_of, divergence, score
from align.maths.kl import k1, k3
from align.maths.masked import masked_mean, masked_sum
from align.maths.preference import accuracy
from align.models import Policy, right_pad
from align.records import Completions, PreferencePair
from align.rewards import Rewards, samples_of
from align.sampling import sample
from align.schema import Probe as ProbeConfig
from align.schema import Sampling
from align.seeds import derive
from reward_models.base import RewardSource, evaluate

ROWS = 8  # sequences per forward without gradient; bounds memory


@dataclass
class Probe:
    """Measures a policy against its reference. Holds what never changes: prompts, pairs, the reference's gold."""

    cfg: ProbeConfig
    sampling: Sampling
    policy: Policy
    data: Data
    rewards: Rewards
    seed: int

    def __post_init__(self) -> None:
        self.prompts = self.data.heldout_prompts[: self.cfg.prompts]
        self.pairs = self.data.heldout_pairs[: self.cfg.pairs]
        self.neutral = replace(self.sampling, temperature=1.0)
        self._reference_gold: Tensor | None = None
        self._reference_pairs: Tensor | None = None

    def measure(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics of the policy as it is now, and one row for each completion that was looked at."""
        started = time.perf_counter()
        policy = self.policy
        policy.model.eval()
        completions = self.answers()
        batch = batch_of(completions, policy.tokenizer.pad_token_id, policy.device)
        found = divergence(policy.model, policy.reference, batch, ROWS)
        metrics = kl_metrics(found, batch.completion_mask) | length_metrics(completions) | text_metrics(completions)
        rewards, components = self.rewards(completions)
        gold = self.gold(completions)
        if step == 0:
            self._reference_gold = gold  # nothing is trained yet: these are the reference's own answers
        metrics |= self.reward_metrics(rewards, components, gold)
        metrics |= self._pairs() | self.verified(completions) | self._greedy()
        metrics["time/probe"] = time.perf_counter() - started
        sequence_kl = masked_sum(k1(found.logprobs, found.reference_logprobs), batch.completion_mask, -1)
        return metrics, sample_rows(step, completions, self.cfg.samples, sequence_kl, rewards, components, gold)

    def state(self) -> dict[str, Any]:
        """What later probes compare with and cannot be measured again: gold of the answers at step 0."""
        return {"reference_gold": self._reference_gold}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._reference_gold = state["reference_gold"]

    @property
    def _seed(self) -> int:
        return derive(self.seed, "probe")

    def answers(self) -> Completions:
        """probe.samples completions of each prompt by the policy as it is now."""
        return sample(self.policy, self.prompts, self.cfg.samples, self.neutral, self._seed)

    def _score(self, name: str, source: RewardSource | None, completions: Completions) -> Tensor | None:
        return None if source is None else torch.tensor(evaluate(name, source, samples_of(completions)))

    def gold(self, completions: Completions) -> Tensor | None:
        return self._score("gold", self.data.gold, completions)

    def reward_metrics(self, rewards: Tensor, components: dict[str, Tensor], gold: Tensor | None) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if components:
            finite = rewards.isfinite()  # all are, unless guard.nonfinite=skip
            metrics["reward/proxy"] = float(rewards[finite].mean())
            metrics |= {f"reward/{name}": float(values[finite].mean()) for name, values in components.items()}
        if gold is not None:
            metrics["reward/gold"] = float(gold.mean())
            metrics["win/gold"] = float(accuracy(gold, self._golden_reference()))
            if components:
                metrics["reward/gap"] = metrics["reward/proxy"] - metrics["reward/gold"]
        return metrics

    def _golden_reference(self) -> Tensor:
        """Gold of the reference's answers under the same random numbers as every probe's: those of the probe at step 0,
        or sampled now when there was none."""
        if self._reference_gold is None:
            answers = sample(self.policy, self.prompts, self.cfg.samples, self.neutral, self._seed,
                             model=self.policy.reference)  # fmt: skip
            self._reference_gold = self._score("gold", self.data.gold, answers)
        assert self._reference_gold is not None
        return self._reference_gold

    def _pairs(self) -> dict[str, float]:
        """The policy's implicit preference on held-out pairs: log-ratios to the reference, not scaled by any beta."""
        if not self.pairs:
            return {}
        batch = pair_batch(self.pairs, self.policy)
        if self._reference_pairs is None:  # the reference never changes: once is enough
            self._reference_pairs = score(Scorer(self.policy.reference, 1.0), batch, ROWS)[0]
        logprobs, _ = score(Scorer(self.policy.model, 1.0), batch, ROWS)
        chosen, rejected = masked_sum(k1(logprobs, self._reference_pairs), batch.completion_mask, -1).chunk(2)
        return {
            "pref/accuracy": float(accuracy(chosen, rejected)),
            "pref/margin": float((chosen - rejected).mean()),
            "pref/chosen_logprob": float(chosen.mean()),
            "pref/rejected_logprob": float(rejected.mean()),
        }

    def verified(self, completions: Completions) -> dict[str, float]:
        sampled = self._score("verifier", self.data.verifier, completions)
        return {} if sampled is None else {"accuracy/sampled": float(sampled.mean())}

    def _greedy(self) -> dict[str, float]:
        if self.data.verifier is None or not self.cfg.greedy:
            return {}
        answers = sample(self.policy, self.prompts, 1, self.neutral, self._seed, greedy=True)
        correct = self._score("verifier", self.data.verifier, answers)
        assert correct is not None
        return {"accuracy/greedy": float(correct.mean())}


def kl_metrics(found: Divergence, mask: Tensor) -> dict[str, float]:
    per_token = k3(found.logprobs, found.reference_logprobs)
    return {
        "kl/k1": float(masked_sum(k1(found.logprobs, found.reference_logprobs), mask, -1).mean()),
        "kl/k3": float(masked_mean(per_token, mask)),
        "kl/exact": float(masked_sum(found.exact_kl, mask, -1).mean()),
        "policy/entropy": float(masked_mean(found.entropy, mask)),
    }


def length_metrics(completions: Completions) -> dict[str, float]:
    lengths, finished = completions.lengths.float(), completions.finished
    metrics = {
        "length/mean": float(lengths.mean()),
        "length/median": float(lengths.quantile(0.5)),
        "length/truncated": float((~finished).float().mean()),
        "length/eos_rate": float(finished.float().mean()),
    }
    if finished.any():
        metrics["length/terminated_mean"] = float(lengths[finished].mean())
    return metrics


def text_metrics(completions: Completions) -> dict[str, float]:
    """Repetition within completions and diversity across them, on tokens without EOS."""
    rows = [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask, strict=True)]
    rows = [row[:-1] if done else row for row, done in zip(rows, completions.finished.tolist(), strict=True)]
    repeated = [1 - len(set(grams)) / len(grams) for row in rows if (grams := _ngrams(row, 3))]
    bigrams = Counter(gram for row in rows for gram in _ngrams(row, 2))
    return {
        "text/rep3": sum(repeated) / len(repeated) if repeated else 0.0,
        "text/distinct2": len(bigrams) / bigrams.total() if bigrams else 0.0,
    }


def _ngrams(row: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def pair_batch(pairs: Sequence[PreferencePair], policy: Policy) -> Batch:
    """Rows of all chosen answers, then all rejected ones."""
    prompts = [encode_prompt(policy.tokenizer, pair.prompt) for pair in pairs] * 2
    answers = [encode_completion(policy.tokenizer, pair.chosen) for pair in pairs]
    answers += [encode_completion(policy.tokenizer, pair.rejected) for pair in pairs]
    pad, device = policy.tokenizer.pad_token_id, policy.device
    ids, mask = right_pad([p + a for p, a in zip(prompts, answers, strict=True)], pad, device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return Batch(ids, mask, starts, right_pad(answers, pad, device)[1])


def sample_rows(
    step: int,
    completions: Completions,
    samples: int,
    kl: Tensor,
    rewards: Tensor,
    components: dict[str, Tensor],
    gold: Tensor | None,
) -> list[dict[str, Any]]:
    """Lines for samples.jsonl; floats are rounded to what a reader can use."""
    return [
        {
            "step": step,
            "prompt_id": prompt.id,
            "sample": i % samples,
            "prompt": prompt.text,
            "completion": completions.texts[i],
            "tokens": int(completions.lengths[i]),
            "finished": bool(completions.finished[i]),
            "kl": round(float(kl[i]), 5),
            "reward": round(float(rewards[i]), 5) if components else None,
            "gold": None if gold is None else round(float(gold[i]), 5),
            "components": {name: round(float(values[i]), 5) for name, values in components.items()},
        }
        for i, prompt in enumerate(completions.prompts)
    ]
