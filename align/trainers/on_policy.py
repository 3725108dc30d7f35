"""The on-policy loop: sample, score, estimate, update. Which algorithm it is, named values in `conf/algo` say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align.forward import Batch, Scorer, batch_of, micro_batches, score
from align.maths import kl as kl_estimators
from align.maths.masked import masked_mean, masked_sum
from align.maths.policy import Denominators, aggregate, clipped_surrogate, log_ratio
from align.models import Policy
from align.records import Completions, Prompt, Rollout, Targets
from align.refusals import ConfigError
from align.rewards import Rewards
from align.sampling import sample
from align.schema import Experiment, OnPolicy, Optimizer
from align.seeds import derive
from align.trainers.estimators import estimate

Log = Callable[[int, dict[str, float]], None]


class OnPolicyTrainer:
    """What the loop holds on to: the policy, its scoring pass, its optimizer.

    The model stays in eval mode: dropout would move the ratio and read as KL before any update (trl#3500).
    """

    def __init__(self, experiment: Experiment, policy: Policy, rewards: Rewards, accelerator: Accelerator):
        self.experiment, self.algo, self.policy, self.rewards = experiment, experiment.algo, policy, rewards
        self.accelerator = accelerator
        temperature = experiment.sampling.temperature
        policy.model.eval()
        trainable = [p for p in policy.model.parameters() if p.requires_grad]
        optimizer, self.schedule = build_optimizer(trainable, self.algo.optimizer, experiment.steps, self.updates)
        self.scorer, self.optimizer = accelerator.prepare(Scorer(policy.model, temperature), optimizer)
        self.reference = Scorer(policy.reference, temperature)

    @property
    def updates(self) -> int:
        """Optimizer steps per rollout."""
        return self.algo.epochs * self.algo.minibatches

    def train(
        self, prompts: Sequence[Prompt], log: Log, count: Callable[..., None], probe: Callable[[int], None]
    ) -> None:
        stream = prompt_stream(prompts, self.algo.prompts_per_step, self.experiment.seed)
        for step in range(self.experiment.steps + 1):
            probe(step)
            if step == self.experiment.steps:
                break
            started = time.perf_counter()
            rollout, stats = self.collect(next(stream), step)
            count(prompts=self.algo.prompts_per_step, completions=len(rollout.rewards),
                  gen_tokens=int(rollout.completions.mask.sum()))  # fmt: skip
            targets = estimate(rollout, self.algo)
            scored = time.perf_counter()
            stats |= targets.stats | self.update(rollout, targets, step)
            log(
                step + 1,
                stats | {"time/update": time.perf_counter() - scored, "time/step": time.perf_counter() - started},
            )

    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Rollout, dict[str, float]]:
        """Completions of this step's prompts with their rewards and whatever logprobs the algorithm needs."""
        started = time.perf_counter()
        seed = derive(self.experiment.seed, "rollout", step)
        completions = sample(self.policy, prompts, self.algo.group_size, self.experiment.sampling, seed)
        sampled = time.perf_counter()
        rewards, components = self.rewards(completions)
        batch = batch_of(completions, self.policy.tokenizer.pad_token_id, self.policy.device)
        rows, kl = self.algo.micro_batch, self.algo.kl
        # on the CPU, beside rewards and masks: the loss moves what it needs to the device
        old = score(self.scorer, batch, rows)[0].cpu() if self.updates > 1 or kl.where == "reward" else None
        reference = score(self.reference, batch, rows)[0].cpu() if kl.where != "none" else None
        rollout = Rollout(completions, rewards, components, old, reference)
        stats = {
            "reward/mean": float(rewards.mean()),
            "reward/std": float(rewards.std()),
            "length/mean": float(completions.lengths.float().mean()),
            "length/truncated": float((~completions.finished).float().mean()),
            **sampler_gap(completions, old),
            "time/sample": sampled - started,
            "time/score": time.perf_counter() - sampled,
        }
        return rollout, stats | {f"reward/{name}": float(values.mean()) for name, values in components.items()}

    def update(self, rollout: Rollout, targets: Targets, step: int) -> dict[str, float]:
        """One rollout's optimizer steps. Returns sums over the last epoch's minibatches, averaged."""
        whole = batch_of(rollout.completions, self.policy.tokenizer.pad_token_id, self.policy.device)
        generator = torch.Generator().manual_seed(derive(self.experiment.seed, "minibatch", step))
        totals: dict[str, float] = {}
        for _ in range(self.algo.epochs):
            totals = {}
            order = torch.randperm(len(whole.ids), generator=generator)
            for chosen in order.chunk(self.algo.minibatches):
                for key, value in self.optimizer_step(rollout, targets, whole, chosen.sort().values, step).items():
                    totals[key] = totals.get(key, 0.0) + value / self.algo.minibatches
        return totals

    def optimizer_step(
        self, rollout: Rollout, targets: Targets, whole: Batch, chosen: Tensor, step: int
    ) -> dict[str, float]:
        minibatch = whole.rows(chosen)
        width = minibatch.completion_mask.shape[1]
        mask = targets.mask[chosen, :width].to(self.policy.device)
        budget = self.experiment.sampling.max_new_tokens
        denominators = Denominators(int(mask.sum()), int(mask.any(-1).sum()), budget)
        totals: dict[str, float] = {}
        for rows in micro_batches(minibatch, self.algo.micro_batch):
            loss, stats = self.loss(rollout, targets, minibatch.rows(rows), chosen[rows.cpu()], denominators)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"step {step + 1}: the loss is {loss.item()}; nothing was updated with it")
            self.accelerator.backward(loss)
            for key, value in stats.items():
                totals[key] = totals.get(key, 0.0) + float(value)
        totals["optim/lr"] = self.schedule.get_last_lr()[0]
        trainable = [p for p in self.policy.model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(trainable, self.algo.optimizer.max_grad_norm)
        totals["optim/grad_norm"] = float(norm)
        if not math.isfinite(totals["optim/grad_norm"]):
            raise FloatingPointError(f"step {step + 1}: the gradient norm is {norm}; nothing was updated with it")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def loss(
        self, rollout: Rollout, targets: Targets, part: Batch, rows: Tensor, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the step's loss, and its share of what is logged. `rows` index the rollout."""
        logprobs, entropies = self.scorer(part)
        width = logprobs.shape[1]
        sampled = rollout.old_logprobs if self.updates > 1 else None  # one update: the ratio is 1 by definition
        old, reference, advantages, mask = (
            None if x is None else x[rows, :width].to(logprobs.device)
            for x in (sampled, rollout.reference_logprobs, targets.advantages, targets.mask)
        )
        return policy_loss(logprobs, entropies, old, reference, advantages, mask, self.algo, denominators)


def policy_loss(
    logprobs: Tensor,
    entropies: Tensor,
    old_logprobs: Tensor | None,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    algo: OnPolicy,
    denominators: Denominators,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A named point on the axes as a loss; everything [B, T], the result a scalar share of the whole step.

        loss = aggregate( surrogate(ratio, A) + [kl.where = loss] coef kl(log p, log p_ref) )

    Without old_logprobs the policy is the one that sampled: the ratio is 1 and only its gradient is left.
    (Eight tensors of one batch: a record of them would be built and taken apart in the same three lines.)
    """
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    log_ratios = log_ratio(logprobs, old, mask, algo.ratio.level)
    losses, clipped = clipped_surrogate(
        log_ratios, advantages if algo.ratio.level == "token" else advantages[:, :1], algo.ratio.clip_low,
        algo.ratio.clip_high,
    )  # fmt: skip
    loss = aggregate(losses, mask, algo.aggregate, denominators)
    stats = {"loss/policy": loss.detach()}
    tokens = max(denominators.tokens, 1)
    if algo.kl.where == "loss":
        assert reference_logprobs is not None and algo.kl.estimator and algo.kl.coef is not None
        divergence = kl_estimators.ESTIMATORS[algo.kl.estimator](logprobs, reference_logprobs)
        kl_loss = algo.kl.coef * aggregate(divergence, mask, algo.aggregate, denominators)
        loss = loss + kl_loss
        stats["loss/kl"] = kl_loss.detach()
    stats["loss"] = loss.detach()
    with torch.no_grad():
        ratio = log_ratios.exp().expand(mask.shape)
        stats["ratio/mean"] = masked_sum(ratio, mask) / tokens
        stats["ratio/clipped"] = masked_sum(clipped.expand(mask.shape).float(), mask) / tokens
        stats["policy/entropy"] = masked_sum(entropies, mask) / tokens
        if reference_logprobs is not None:
            sequences = max(denominators.sequences, 1)
            stats["kl/k1"] = masked_sum(kl_estimators.k1(logprobs, reference_logprobs), mask) / sequences
            stats["kl/k3"] = masked_sum(kl_estimators.k3(logprobs, reference_logprobs), mask) / tokens
    return loss, stats


def sampler_gap(completions: Completions, old_logprobs: Tensor | None) -> dict[str, float]:
    """How far the sampler's logprobs are from the trainer's of the same tokens: rounding, cache and padding."""
    if old_logprobs is None:
        return {}
    gap = (old_logprobs - completions.logprobs).abs()
    return {"sampler/gap": float(masked_mean(gap, completions.mask))}


def build_optimizer(
    parameters: Sequence[nn.Parameter], cfg: Optimizer, steps: int, updates: int = 1
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW and its schedule; the schedule counts optimizer steps, `updates` to a rollout."""
    optimizer = torch.optim.AdamW(
        parameters, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps, weight_decay=cfg.weight_decay
    )
    warmup, total = cfg.warmup_steps * updates, steps * updates

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / (warmup + 1)  # the first rollout is not wasted on a rate of 0
        progress = (update - warmup) / max(total - warmup, 1)
        return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[cfg.schedule]

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def prompt_stream(prompts: Sequence[Prompt], per_step: int, seed: int) -> Iterator[list[Prompt]]:
    """`per_step` prompts at a time, each epoch in a new order; a batch may reach into the next epoch.

    Raises ConfigError when there are fewer prompts than that: a prompt twice in one batch would be answered alike.
    """
    if len(prompts) < per_step:
        raise ConfigError(f"algo.prompts_per_step={per_step}: the data has only {len(prompts)} training prompts")
    generator = torch.Generator().manual_seed(derive(seed, "prompts"))
    waiting: list[Prompt] = []
    while True:
        if len(waiting) < per_step:  # the next epoch starts with what this batch does not hold yet
            epoch = [prompts[i] for i in torch.randperm(len(prompts), generator=generator).tolist()]
            waiting += sorted(epoch, key=lambda prompt: prompt in waiting)
        yield waiting[:per_step]
        waiting = waiting[per_step:]
