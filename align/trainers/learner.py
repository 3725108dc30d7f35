"""What turns a rollout into new weights: the trained module, its optimizer, and the rules for numbers that go wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn, set_grad_enabled

from align.checkpoints import load_trainable
from align.critic import Trained
from align.device import lay_out_gradients
from align.forward import Batch, batch_of, micro_batches
from align.halving import Halving, TooLarge
from align.maths.masked import masked_sum
from align.maths.policy import Denominators
from align.models import Policy
from align.records import Rollout, Targets
from align.schema import Experiment, OnPolicy, Optimizer
from align.seeds import derive
from align.trainers.losses import critic_loss, policy_loss


@dataclass(frozen=True)
class Outlier:
    """A token whose log-ratio to the policy that sampled it passed the guard."""

    row: int  # of the rollout
    position: int  # of the token in its completion
    log_ratio: float


class Learner:
    """One rollout, epochs x minibatches optimizer steps.

    Processes hold the same rollout and take every world-th row of a minibatch; denominators are the whole minibatch's,
    so the summed gradients are those of one process.
    """

    def __init__(self, experiment: Experiment, policy: Policy, trained: Trained, accelerator: Accelerator):
        self.experiment, self.algo, self.policy, self.accelerator = experiment, experiment.algo, policy, accelerator
        self.bare = trained
        self.parts = trained.parts()
        optimizer, self.schedule = build_optimizer(self.parts, self.algo, experiment.steps, self.updates)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names to come in DDP
            self.trained, self.optimizer = accelerator.prepare(trained, optimizer)
        self.outliers: list[Outlier] = []
        self.halving = Halving(self.algo.micro_batch, alone=accelerator.num_processes == 1)

    @property
    def updates(self) -> int:
        """Optimizer steps per rollout."""
        return self.algo.epochs * self.algo.minibatches

    def update(self, rollout: Rollout, targets: Targets, step: int, kl_coef: float | None) -> dict[str, float]:
        """One rollout's optimizer steps. Returns what is logged: means over the last epoch's minibatches."""
        whole = batch_of(rollout.completions, self.policy.tokenizer.pad_token_id, self.policy.device)
        generator = torch.Generator().manual_seed(derive(self.experiment.seed, "minibatch", step))
        usable = targets.usable.nonzero().squeeze(-1)
        self.outliers = []
        skipped, last = 0.0, list[dict[str, float]]()
        for _ in range(self.algo.epochs):
            order = usable[torch.randperm(len(usable), generator=generator)]
            last = []
            for chosen in order.tensor_split(self.algo.minibatches):
                stats = self.optimizer_step(rollout, targets, whole, chosen.sort().values, step, kl_coef)
                skipped += stats.pop("guard/skipped_updates")
                last.append(stats)
        self.outliers = gather_object(self.outliers)
        keys = {key: None for stats in last for key in stats}  # in their order; a minibatch without rows has none
        found = {key: [stats[key] for stats in last if key in stats] for key in keys}
        means = {key: sum(values) / len(values) for key, values in found.items()}
        return means | {
            "guard/skipped_updates": skipped,
            "guard/log_ratio_outliers": len({outlier.row for outlier in self.outliers}),
        }

    def optimizer_step(
        self, rollout: Rollout, targets: Targets, whole: Batch, chosen: Tensor, step: int, kl_coef: float | None
    ) -> dict[str, float]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        counted = targets.mask[chosen]
        if len(chosen) < world or not counted.any():  # the others were not finite, or all that is left was cut off
            self.schedule.step()
            return {"guard/skipped_updates": 1.0}
        mine = chosen[rank::world]
        denominators = Denominators(
            int(counted.sum()), int(counted.any(-1).sum()), self.experiment.sampling.max_new_tokens
        )
        before = len(self.outliers)

        def attempt() -> dict[str, float] | None:
            try:
                return self.gradients(rollout, targets, whole, mine, kl_coef, denominators)
            except TooLarge as error:
                rows = error.rows
            self.halving.halve(rows)
            return None

        while (totals := attempt()) is None:  # what the minibatch has left behind so far does not count
            self.trained.zero_grad(set_to_none=True)
            del self.outliers[before:]
        summed = self.summed(totals)
        return summed | self.apply(summed, step)

    def gradients(
        self,
        rollout: Rollout,
        targets: Targets,
        whole: Batch,
        rows: Tensor,
        kl_coef: float | None,
        denominators: Denominators,
    ) -> dict[str, float]:
        """Of a minibatch's rows, summed over its micro-batches; returns what is logged, summed too. Raises TooLarge."""
        world, totals = self.accelerator.num_processes, dict[str, float]()
        lay_out_gradients(p for parameters in self.parts.values() for p in parameters)
        for learning, places in self.split(targets, rows):
            minibatch = whole.rows(places.to(whole.ids.device))
            parts = micro_batches(minibatch, self.halving.rows, self.algo.micro_batch_tokens)
            for number, chosen in enumerate(parts):
                last = number + 1 == len(parts)
                with (
                    nullcontext() if last else self.accelerator.no_sync(self.trained),
                    set_grad_enabled(learning),
                    self.halving.trying(len(chosen)),
                ):
                    part, at = minibatch.rows(chosen), places[chosen.cpu()]
                    for loss, stats in self.losses(rollout, targets, part, at, kl_coef, denominators):
                        if learning:
                            self.accelerator.backward(loss * world)  # DDP averages over processes
                        for key, value in stats.items():
                            totals[key] = totals.get(key, 0.0) + float(value)
        return totals

    def split(self, targets: Targets, rows: Tensor) -> list[tuple[bool, Tensor]]:
        """Rows to learn from, and those whose gradient is exactly 0 (every advantage is 0, no KL or critic is in the
        loss): they are scored for what is logged, without a backward pass. DDP needs one from every process."""
        alone = self.accelerator.num_processes == 1
        if not alone or self.algo.critic is not None or self.algo.kl.where == "loss":
            return [(True, rows)]
        silent = ((targets.advantages[rows] == 0) | ~targets.mask[rows]).all(-1)
        found = [(True, rows[~silent]), (False, rows[silent])]
        return [(learning, some) for learning, some in found if len(some)]

    def losses(
        self,
        rollout: Rollout,
        targets: Targets,
        part: Batch,
        rows: Tensor,
        kl_coef: float | None,
        denominators: Denominators,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """A micro-batch's shares of the step's losses, and of what is logged. `rows` index the rollout.

        A second pass is only run when the first one's graph has been consumed.
        """
        width = part.completion_mask.shape[1]
        sampled = rollout.old_logprobs if self.updates > 1 else None  # one update: the ratio is 1 by definition

        def of_part(field: Tensor | None) -> Any:
            return None if field is None else field[rows, :width].to(part.ids.device)

        old, reference, advantages, mask = map(
            of_part, (sampled, rollout.reference_logprobs, targets.advantages, targets.mask)
        )
        logprobs, entropies, *values = self.trained(part)
        loss, stats, log_ratios = policy_loss(
            logprobs, old, reference, advantages, mask, self.algo, kl_coef, denominators
        )
        stats["policy/entropy"] = masked_sum(entropies, mask) / max(denominators.tokens, 1)
        self.watch(log_ratios, mask, rows)
        if self.algo.critic is None:
            yield loss, stats
            return
        if self.bare.two_passes:
            yield loss, stats
            loss, stats, values = torch.zeros_like(loss), {}, list(self.trained(part, "critic"))
        error, critic_stats = critic_loss(
            values[0], of_part(rollout.values), of_part(targets.returns), mask, self.algo.critic, denominators
        )
        yield loss + error, stats | critic_stats

    def apply(self, summed: Mapping[str, float], step: int) -> dict[str, float]:
        """The optimizer's step, unless a number is not finite: then the declared rule (guard.nonfinite)."""
        if self.algo.critic is not None and step < self.algo.critic.warmup_steps:
            for parameter in self.parts.get("policy", ()):  # no gradient, no step: not even the optimizer's own moments
                parameter.grad = None
        stats = {"optim/lr": self.schedule.get_last_lr()[0]}
        broken = [f"{key} is {value}" for key, value in summed.items() if key in LOSSES and not math.isfinite(value)]
        for name, parameters in self.parts.items():
            key = "optim/grad_norm" if name == "policy" else f"optim/{name}_grad_norm"
            norm = float(self.accelerator.clip_grad_norm_(parameters, self.algo.optimizer.max_grad_norm))
            stats[key] = norm
            stats[key.replace("grad_norm", "clipped")] = float(norm > self.algo.optimizer.max_grad_norm)
            if not math.isfinite(norm):
                broken.append(f"the gradient norm of the {name} is {norm}")
        if broken and self.experiment.guard.nonfinite == "stop":
            raise FloatingPointError(f"step {step + 1}: {', '.join(broken)}; nothing was updated with it")
        if not broken:
            self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return stats | {"guard/skipped_updates": float(bool(broken))}

    def watch(self, log_ratios: Tensor, mask: Tensor, rows: Tensor) -> None:
        """Keep what passes guard.log_ratio; at most one token of a completion, its worst."""
        sizes = torch.where(mask, log_ratios.abs(), torch.zeros_like(log_ratios))
        worst, positions = sizes.max(-1)
        for i in (worst > self.experiment.guard.log_ratio).nonzero().squeeze(-1).tolist():
            place = int(positions[i])
            self.outliers.append(Outlier(int(rows[i]), place, float(log_ratios[i, place])))

    def summed(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Shares of all processes added up."""
        shares = gather_object([dict(totals)])
        return {key: sum(share[key] for share in shares) for key in totals}

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        load_trainable(self.bare, weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


LOSSES = ("loss", "critic/loss")


def build_optimizer(
    parts: Mapping[str, Sequence[nn.Parameter]], algo: OnPolicy, steps: int, updates: int = 1
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a group for each role, and its schedule, which counts optimizer steps: `updates` to a rollout."""
    cfg: Optimizer = algo.optimizer
    rates = {"policy": cfg.lr} | ({"critic": algo.critic.lr} if algo.critic else {})
    groups = [{"params": list(parameters), "lr": rates[name]} for name, parameters in parts.items()]
    optimizer = torch.optim.AdamW(
        groups, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps, weight_decay=cfg.weight_decay
    )
    warmup, total = cfg.warmup_steps * updates, steps * updates

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / (warmup + 1)  # the first rollout is not wasted on a rate of 0
        progress = (update - warmup) / max(total - warmup, 1)
        return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[cfg.schedule]

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
