"""The on-policy loop: sample, score, estimate, update. Which algorithm it is, named values in `conf/algo` say."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from align.checkpoints import Keeper, restore_rng, rng_state
from align.critic import Trained, build_critic
from align.device import return_freed_memory
from align.forward import Scorer, batch_of, score
from align.maths.control import Moments
from align.maths.masked import masked_mean
from align.models import Policy
from align.records import Completions, Prompt, Rollout
from align.refusals import ConfigError
from align.reward_model import RewardModel
from align.rewards import Rewards
from align.rollouts import joined, taken, together
from align.sampling import sample
from align.schema import Experiment
from align.seeds import derive
from align.stopping import Stop, Terminated
from align.trainers import reports
from align.trainers.estimators import Memory, divergence, estimate, weighted
from align.trainers.learner import Learner
from align.trainers.prompts import PromptStream
from align.vllm_served import GivenUp, OnMain


class Hooks(NamedTuple):
    """What the loop calls besides its own work."""

    log: Callable[[int, dict[str, float]], None]
    count: Callable[..., None]
    probe: Callable[[int], None]
    event: Callable[..., None]  # kind, step, sentence, details: something a reader should see
    keeper: Keeper


class OnPolicyTrainer:
    """What the loop holds on to: the policy, its scoring passes, and what learns.

    The model stays in eval mode: dropout would move the ratio and read as KL before any update (trl#3500).
    Every process samples and scores its share of the prompts; then all hold the whole rollout, so that baselines,
    whitening and denominators are those of the batch whatever the number of processes.
    """

    def __init__(
        self,
        experiment: Experiment,
        policy: Policy,
        rewards: Rewards,
        accelerator: Accelerator,
        learned: RewardModel | None = None,
        served: OnMain | None = None,  # by servers; None: the policy is sampled in this process
    ):
        self.experiment, self.algo, self.policy, self.rewards = experiment, experiment.algo, policy, rewards
        self.accelerator, self.served, self.stop = accelerator, served, Stop()
        self._check_processes()
        temperature = experiment.sampling.temperature
        policy.model.eval()
        cfg = self.algo.critic
        critic = build_critic(cfg, experiment.model, policy, learned, experiment.seed) if cfg else None
        self.scorers = Trained(Scorer(policy.model, temperature), critic)
        self.learner = Learner(experiment, policy, self.scorers, accelerator)
        self.reference = Scorer(policy.reference, temperature)
        self.memory = Memory(self.algo.kl.coef)
        self.explained: list[float] = []  # variance of the returns that the critic explained, of each rollout

    def train(self, prompts: Sequence[Prompt], hooks: Hooks) -> None:
        stream = PromptStream(prompts, self.algo.prompts_per_step, self.experiment.seed)
        self.stop = hooks.keeper.stop
        for step in range(self.restore(stream, hooks.keeper), self.experiment.steps + 1):
            hooks.probe(step)
            hooks.keeper.save(step, self.scorers, lambda: self.state(stream))
            if step == self.experiment.steps:
                break
            started, drawn, streams = time.perf_counter(), stream.drawn, rng_state()
            try:
                rollout, stats = self.collect(stream, step, hooks.count)
            except GivenUp:
                restore_rng(streams)  # a reward may have drawn for the rollout's first draws
                self.end(step, hooks.keeper, self.state(stream) | {"drawn": drawn})
            reports.nonfinite(rollout, self.experiment.guard, step, hooks.event)
            return_freed_memory()
            if self.served is not None:
                reports.servers(self.served.told(), stats["sampler/gap"], self.experiment.sampling, step, hooks.event)
            self.memory = self.memory.seen(rollout, self.algo)
            targets = estimate(rollout, self.algo, self.memory, self.experiment.sampling.max_new_tokens)
            targets = weighted(targets, rollout, self.experiment.sampling.importance)
            scored = time.perf_counter()
            stats |= targets.stats | self.learner.update(rollout, targets, step, self.memory.kl_coef)
            stats |= self.control(rollout, rollout.completions.mask & targets.usable.unsqueeze(-1))
            self.learner.halving.report(step + 1, hooks.event)
            reports.outliers(self.learner.outliers, rollout, self.experiment.guard, step, hooks.event)
            self.watch_critic(stats, step, hooks.event)
            now = time.perf_counter()
            hooks.log(step + 1, stats | {"time/update": now - scored, "time/step": now - started})

    def end(self, step: int, keeper: Keeper, state: dict[str, Any]) -> NoReturn:
        """With a checkpoint of `step`, from which it goes on as if nothing had been sampled since. One that was due is
        there already: written again, it would be gone for a moment, in which the run may be killed."""
        if step % keeper.cfg.every:
            keeper.save(step, self.scorers, lambda: state)
        raise Terminated

    def collect(
        self, stream: PromptStream, step: int, count: Callable[..., None] = lambda **_: None
    ) -> tuple[Rollout, dict[str, float]]:
        """Completions of this step's prompts with their rewards and whatever logprobs the algorithm needs."""
        started = time.perf_counter()
        rollout, stats = self.sampled(stream, step, count)
        sampled = time.perf_counter()
        completions, rewards = rollout.completions, rollout.rewards
        old, reference, values = self.scores(completions)
        rollout = Rollout(completions, rewards, rollout.components, old, reference, values)
        finite = rewards.isfinite()
        stats |= {
            "reward/mean": float(rewards[finite].mean()),
            "reward/std": float(rewards[finite].std()),
            "length/mean": float(completions.lengths.float().mean()),
            "length/truncated": float((~completions.finished).float().mean()),
            **sampler_gap(completions, old),
            "time/sample": sampled - started,
            "time/score": time.perf_counter() - sampled,
        }
        return rollout, stats | {f"reward/{k}": float(v[finite].mean()) for k, v in rollout.components.items()}

    def sampled(self, stream: PromptStream, step: int, count: Callable[..., None]) -> tuple[Rollout, dict[str, float]]:
        """prompts_per_step groups of completions with their rewards.

        With max_draws > 1, groups whose rewards are all equal give way to groups of further prompts (DAPO's dynamic
        sampling, arXiv:2503.14476, section 3.2); what is still missing after the last draw is filled up with them.
        """
        speaking, silent, consumed = list[Rollout](), list[Rollout](), Counter[str]()
        for draw in range(self.algo.max_draws):
            prompts = stream.next()
            drawn = self.answered(prompts, ("rollout", step, *([draw] if draw else [])))
            consumed.update(prompts=len(prompts), completions=len(drawn.rewards),
                            gen_tokens=int(drawn.completions.mask.sum()))  # fmt: skip
            if self.algo.max_draws == 1:
                count(**consumed)
                return drawn, {}
            K = self.algo.group_size
            for i, rewards in enumerate(drawn.rewards.view(-1, K)):
                group = taken(drawn, range(i * K, (i + 1) * K))
                told_apart = bool(rewards.isfinite().all()) and rewards.max() != rewards.min()
                (speaking if told_apart else silent).append(group)
            if len(speaking) >= self.algo.prompts_per_step:
                break
        count(**consumed)  # at the end: of a rollout that is given up in a later draw nothing counts
        kept = (speaking + silent)[: self.algo.prompts_per_step]
        stats = {"group/drawn": float(len(speaking) + len(silent)), "group/discarded_silent": float(
            len(silent) - max(len(kept) - len(speaking), 0))}  # fmt: skip
        return joined(kept), stats

    def answered(self, prompts: Sequence[Prompt], stream: tuple[Any, ...]) -> Rollout:
        """Each process answers its share of the prompts, unless servers do, and rewards it; all get everything."""
        share, K = len(prompts) // self.accelerator.num_processes, self.algo.group_size
        first = self.accelerator.process_index * share
        asked = K, self.experiment.sampling, derive(self.experiment.seed, *stream)
        served = self.served and self.served(self.stop, self.policy, prompts, *asked)

        def rollout() -> Rollout:
            if served is None:
                completions = sample(self.policy, prompts[first : first + share], *asked)
            else:
                completions = taken(served, range(first * K, (first + share) * K))
            return Rollout(completions, *self.rewards(completions))

        return together(self.accelerator, rollout)

    def scores(self, completions: Completions) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Old logprobs, reference logprobs and values [B, T], each where the algorithm needs it; on the CPU, beside
        rewards and masks: the loss moves what it needs to the device."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batch = batch_of(completions, self.policy.tokenizer.pad_token_id, self.policy.device)
        if world > 1:
            batch = batch.rows(torch.arange(len(batch.ids), device=batch.ids.device).chunk(world)[rank])
        algo, kl = self.algo, self.algo.kl
        size = self.learner.halving, algo.micro_batch_tokens
        needs_old = self.learner.updates > 1 or kl.where == "reward" or kl.target_nats_per_sequence is not None
        needs_old = needs_old or self.served is not None or self.experiment.sampling.importance is not None
        old, values = None, None
        if needs_old or (algo.critic is not None and not self.scorers.two_passes):
            old, _, *own = score(self.scorers, batch, *size)
            values = own[0] if own else None
        if self.scorers.two_passes:
            (values,) = score(lambda part: self.scorers(part, "critic"), batch, *size)
        reference = score(self.reference, batch, *size)[0] if kl.where != "none" else None
        width = completions.mask.shape[1]  # of all draws; a share is cut to its own longest, and so might all be
        found = tuple(None if x is None else pad(x.cpu(), (0, width - x.shape[1])) for x in (old, reference, values))
        every: _Scores = together(self.accelerator, lambda: _Scores(*found))
        return every.old, every.reference, every.values

    def control(self, rollout: Rollout, mask: Tensor) -> dict[str, float]:
        """The KL coefficient that this step used, and the next one from what the rollout measured."""
        if self.memory.kl_coef is None or self.algo.kl.target_nats_per_sequence is None:
            return {}
        used, nats = self.memory.kl_coef, divergence(rollout, mask)
        if not math.isfinite(nats):  # no completion counts: nothing was measured
            return {"kl/coef": used, "kl/coef_bounded": 0.0}
        self.memory, bounded = self.memory.adapted(self.algo.kl, nats, len(rollout.rewards))
        return {"kl/coef": used, "kl/coef_bounded": float(bounded)}

    def watch_critic(self, stats: dict[str, float], step: int, event: Callable[..., None]) -> None:
        """A useless critic is reported when it starts to count, and at the end."""
        if self.algo.critic is None:
            return
        self.explained.append(stats["critic/explained_variance"])
        if step in (self.algo.critic.warmup_steps, self.experiment.steps - 1):
            reports.critic(self.explained, step + 1, event)

    def state(self, stream: PromptStream) -> dict[str, Any]:
        moments = self.memory.moments
        return {
            **self.learner.state(),
            "kl_coef": self.memory.kl_coef,
            "moments": [moments.count, moments.mean, moments.deviations],
            "drawn": stream.drawn,
            "explained": self.explained,
        }

    def restore(self, stream: PromptStream, keeper: Keeper) -> int:
        """The step to go on from: that of the checkpoint, or 0."""
        found = keeper.start
        if found is None:
            return 0
        self.learner.restore(found.weights, found.state)
        self.memory = Memory(found.state["kl_coef"], Moments(*found.state["moments"]))
        self.explained = list(found.state["explained"])
        stream.skip_to(found.state["drawn"])
        keeper.restore_rng()  # a reward of the user's may draw from it
        return found.step

    def _check_processes(self) -> None:
        world = self.accelerator.num_processes
        for key, number in (("prompts_per_step", self.algo.prompts_per_step), ("minibatches", self.minibatch)):
            if number % world:
                raise ConfigError(f"algo.{key}={getattr(self.algo, key)}: {world} processes share prompts and "
                                  f"minibatches ({self.minibatch} completions) evenly; choose a multiple")  # fmt: skip

    @property
    def minibatch(self) -> int:
        """Completions of an optimizer step, over all processes."""
        return self.algo.prompts_per_step * self.algo.group_size // self.algo.minibatches


@dataclass(frozen=True)
class _Scores:
    old: Tensor | None
    reference: Tensor | None
    values: Tensor | None


def sampler_gap(completions: Completions, old_logprobs: Tensor | None) -> dict[str, float]:
    """How far the sampler's logprobs are from the trainer's of the same tokens: rounding, cache and padding. Rows that
    are not finite are left to guard.nonfinite."""
    if old_logprobs is None:
        return {}
    gap = (old_logprobs - completions.logprobs).abs()
    finite = gap.masked_fill(~completions.mask, 0).isfinite().all(-1, keepdim=True)
    return {"sampler/gap": float(masked_mean(gap, completions.mask & finite))}
