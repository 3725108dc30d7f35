"""PPO is REINFORCE with a baseline, clipped: what must hold of the loop whatever it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from align.checkpoints import trainable
from align.maths.advantages import rewards_to_go
from align.records import Rollout
from align.trainers import on_policy
from align.trainers.estimators import Memory, estimate
from align.trainers.on_policy import OnPolicyTrainer
from tests.trainers import fixed_rollout as fixed

PPO = ("algo=ppo", "algo.minibatches=1", "algo.epochs=1", "algo.ratio.clip_low=null", "algo.ratio.clip_high=null",
       "algo.critic.clip=null")  # fmt: skip
BARE = ("algo.gae.lam=1", "algo.whiten.advantages=false", "algo.critic.coef=0", "algo.kl.coef=1e-12")
REWARDS = torch.tensor(fixed.REWARDS)


def trainer_of(monkeypatch, *overrides: str, dtype: torch.dtype = torch.float32) -> OnPolicyTrainer:
    monkeypatch.setattr(on_policy, "sample", lambda *args: fixed.completions())
    settings = fixed.experiment(*overrides)
    policy = fixed.policy()
    policy.model.to(dtype), policy.reference.to(dtype)
    return OnPolicyTrainer(settings, policy, lambda _: (REWARDS.to(dtype), {}), Accelerator(cpu=True))


class Stream:
    """Always the two prompts of the fixed rollout."""

    drawn = 0

    def next(self) -> list:
        return fixed.PROMPTS


def collected(trainer: OnPolicyTrainer) -> Rollout:
    return trainer.collect(Stream(), 0)[0]


def policy_gradient(trainer: OnPolicyTrainer, rollout: Rollout) -> Tensor:
    """Of the policy's weights after one update whose optimizer does nothing."""
    limit = trainer.experiment.sampling.max_new_tokens
    targets = estimate(rollout, trainer.algo, trainer.memory, limit)
    kept: list[Tensor] = []

    def look(*_: Any) -> None:
        kept.append(torch.cat([p.grad.flatten() for p in trainer.learner.parts["policy"]]))

    trainer.learner.optimizer.step = look
    trainer.learner.update(rollout, targets, 0, trainer.memory.kl_coef)
    return kept[0]


def test_ppo_without_its_extras_is_reinforce(monkeypatch):
    """lambda = gamma = 1, a zero critic that stays so, nothing whitened, one epoch: -mean of R grad log p."""
    trainer = trainer_of(monkeypatch, *PPO, *BARE, "algo.critic.init=zero", dtype=torch.float64)
    rollout = collected(trainer)
    assert rollout.values is not None and rollout.values.abs().max() == 0
    got = policy_gradient(trainer, rollout)
    trainer.policy.model.zero_grad()
    batch = on_policy.batch_of(rollout.completions, trainer.policy.tokenizer.pad_token_id, trainer.policy.device)
    logprobs, _ = trainer.scorers.policy(batch)
    assert logprobs.dtype == torch.float64
    mask = rollout.completions.mask
    loss = -(REWARDS.double().unsqueeze(-1) * logprobs)[mask].mean()
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in trainer.learner.parts["policy"]])
    assert wanted.norm() > 1e-3
    cosine = torch.cosine_similarity(got, wanted, dim=0)
    assert cosine > 0.999999
    assert_close(got, wanted, rtol=1e-6, atol=1e-9)


def test_the_kl_is_paid_token_by_token_and_the_score_at_the_last(monkeypatch):
    trainer = trainer_of(monkeypatch, *PPO, "algo.kl.coef=0.5", "algo.whiten.advantages=false", "algo.gae.lam=1",
                         "algo.critic.init=zero")  # fmt: skip
    rollout = collected(trainer)
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    kl = rollout.old_logprobs - rollout.reference_logprobs
    assert kl.abs().max() > 1e-3
    for row, length in enumerate(fixed.LENGTHS):
        paid = [-0.5 * float(kl[row, t]) for t in range(length)]
        paid[-1] += fixed.REWARDS[row]
        assert float(targets.advantages[row, 0]) == pytest.approx(sum(paid), abs=1e-5)
        assert float(targets.advantages[row, length - 1]) == pytest.approx(paid[-1], abs=1e-5)
        assert (targets.advantages[row, length:] == 0).all()


def test_returns_are_advantages_plus_values_and_the_critic_may_have_a_lambda_of_its_own(monkeypatch):
    own = ("algo.critic.init=random", "algo.whiten.advantages=false", "algo.gae.lam=0.5")
    trainer = trainer_of(monkeypatch, *PPO, *own)
    rollout = collected(trainer)
    mask = rollout.completions.mask
    assert rollout.values[mask].abs().max() > 0.01
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    assert_close(targets.returns[mask], (targets.advantages + rollout.values)[mask])
    apart = trainer_of(monkeypatch, *PPO, *own, "algo.gae.critic_lam=1")
    targets = estimate(rollout, apart.algo, apart.memory, fixed.LIMIT)
    token_rewards = -0.05 * (rollout.old_logprobs - rollout.reference_logprobs)
    for row, length in enumerate(fixed.LENGTHS):
        token_rewards[row, length - 1] += fixed.REWARDS[row]
    assert_close(targets.returns, rewards_to_go(token_rewards, mask))  # lambda 1: Monte Carlo, whatever the critic says


def test_whitened_advantages_have_no_mean_and_unit_variance_over_the_rollout(monkeypatch):
    trainer = trainer_of(monkeypatch, *PPO)
    rollout = collected(trainer)
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    counted = targets.advantages[targets.mask]
    assert float(counted.mean()) == pytest.approx(0, abs=1e-6)
    assert float(counted.square().mean()) == pytest.approx(1, abs=1e-5)
    assert targets.stats["advantage/std"] != pytest.approx(1)  # logged as they were before


@pytest.mark.parametrize(("kind", "init"), [("adapter", "random"), ("head", "random"), ("adapter", "zero")])
def test_the_critic_learns_the_returns_of_a_rollout_it_sees_often(monkeypatch, kind, init):
    settings = ("algo=ppo", "algo.epochs=4", "algo.minibatches=1", f"algo.critic.kind={kind}", "algo.critic.clip=null",
                f"algo.critic.init={init}", "algo.critic.lr=0.01", "algo.critic.warmup_steps=99", "steps=100",
                "algo.kl.coef=1e-6")  # fmt: skip
    trainer = trainer_of(monkeypatch, *settings)
    before = {name: p.clone() for name, p in trainable(trainer.scorers).items() if name.startswith("policy.")}
    explained = []
    for step in range(12):
        rollout = collected(trainer)
        targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
        explained.append(targets.stats["critic/explained_variance"])
        trainer.learner.update(rollout, targets, step, trainer.memory.kl_coef)
    assert explained[-1] > 0.3 > explained[0] + 0.1
    after = trainable(trainer.scorers)
    assert all(torch.equal(after[name], value) for name, value in before.items())  # warm-up: the policy stands still


def test_the_value_loss_moves_no_weight_of_the_policy_in_adapter_mode(monkeypatch):
    trainer = trainer_of(monkeypatch, "algo=ppo", "algo.critic.kind=adapter", "algo.critic.init=random")
    rollout = collected(trainer)
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    nothing = torch.zeros_like(targets.advantages)
    still = type(targets)(nothing, targets.returns, targets.mask, targets.usable, targets.stats)
    before = {name: p.clone() for name, p in trainable(trainer.scorers).items()}
    trainer.learner.update(rollout, still, 0, trainer.memory.kl_coef)
    moved = {name for name, p in trainable(trainer.scorers).items() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("critic.") for name in moved)


def test_one_more_update_per_rollout_needs_the_old_logprobs_recomputed(monkeypatch):
    trainer = trainer_of(monkeypatch, "algo=ppo", "algo.minibatches=4")
    rollout = collected(trainer)
    batch = on_policy.batch_of(rollout.completions, trainer.policy.tokenizer.pad_token_id, trainer.policy.device)
    with torch.no_grad():
        now, _ = trainer.scorers.policy(batch)
    assert_close(rollout.old_logprobs, now)
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    stats = trainer.learner.update(rollout, targets, 0, trainer.memory.kl_coef)
    assert stats["kl_old/k3"] > 0 and stats["ratio/mean"] != 1


def test_the_adaptive_coefficient_follows_the_nats_of_the_rollout(monkeypatch):
    adaptive = ("algo.kl.target_nats_per_sequence={}", "algo.kl.horizon_completions=8")
    for target, factor in ((1e-9, 1.2), (1e9, 0.8)):
        trainer = trainer_of(monkeypatch, *PPO, adaptive[0].format(target), adaptive[1], "algo.kl.coef=0.1")
        rollout = collected(trainer)
        stats = trainer.control(rollout, rollout.completions.mask)
        assert stats == {"kl/coef": 0.1, "kl/coef_bounded": 1.0}
        assert trainer.memory.kl_coef == pytest.approx(0.1 * factor)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("mode=keep", lambda r, n, done: r),
        ("mode=penalise penalty=0.5", lambda r, n, done: r if done else r - 0.5),
        ("mode=replace penalty=0.5", lambda r, n, done: r if done else -0.5),
        # the last half of the limit of 12: no penalty up to 6 tokens, all of it at 12
        ("mode=ramp penalty=0.5 ramp=0.5",
         lambda r, n, done: r - 0.5 * max(0, n - 6) / 6),
    ],
)  # fmt: skip
def test_what_becomes_of_the_score_of_a_completion_that_was_cut_off(monkeypatch, rule, wanted):
    truncation = [f"algo.truncation.{part}" for part in rule.split()]
    plain = ("algo.kl.coef=1e-12", "algo.gae.lam=1", "algo.whiten.advantages=false")
    trainer = trainer_of(monkeypatch, *PPO, *truncation, *plain)
    targets = estimate(collected(trainer), trainer.algo, trainer.memory, fixed.LIMIT)
    expected = [wanted(*row) for row in zip(fixed.REWARDS, fixed.LENGTHS, fixed.FINISHED, strict=True)]
    assert targets.advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_rewards_are_scaled_by_what_has_been_seen_and_clipped(monkeypatch):
    trainer = trainer_of(monkeypatch, *PPO, "algo.scale.normalise=start", "algo.scale.clip=1.0", "algo.kl.coef=1e-12",
                         "algo.gae.lam=1", "algo.whiten.advantages=false")  # fmt: skip
    rollout = collected(trainer)
    memory = trainer.memory.seen(rollout, trainer.algo)
    assert memory.seen(rollout, trainer.algo) == memory  # the first rollout's, for good
    mean = sum(fixed.REWARDS) / 8
    std = math.sqrt(sum((r - mean) ** 2 for r in fixed.REWARDS) / 8)
    targets = estimate(rollout, trainer.algo, memory, fixed.LIMIT)
    expected = [max(-1.0, min(1.0, (r - mean) / std)) for r in fixed.REWARDS]
    assert targets.advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert targets.stats["reward/clipped"] == sum(abs(r - mean) / std > 1 for r in fixed.REWARDS) / 8


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_a_reward_that_is_not_finite_stops_the_run_or_costs_its_completion(monkeypatch, rule):
    trainer = trainer_of(monkeypatch, *PPO, f"guard.nonfinite={rule}")
    rollout = collected(trainer)
    rewards = rollout.rewards.clone()
    rewards[3] = math.nan
    broken = Rollout(rollout.completions, rewards, {}, rollout.old_logprobs, rollout.reference_logprobs, rollout.values)
    events: list[tuple] = []
    guard = trainer.experiment.guard
    if rule == "stop":
        with pytest.raises(FloatingPointError, match="Name a fruit"):
            on_policy.reports.nonfinite(broken, guard, 0, lambda *a, **k: events.append((a, k)))
        return
    on_policy.reports.nonfinite(broken, guard, 0, lambda *a, **k: events.append((a, k)))
    assert len(events) == 1 and events[0][1]["prompt"] == "Name a fruit."
    targets = estimate(broken, trainer.algo, Memory(0.05), fixed.LIMIT)
    assert targets.usable.tolist() == [True, True, True, False, True, True, True, True]
    assert not targets.mask[3].any() and torch.isfinite(targets.advantages).all()
    stats = trainer.learner.update(broken, targets, 0, 0.05)
    assert math.isfinite(stats["loss"]) and stats["guard/skipped_updates"] == 0


def test_an_exploding_ratio_is_reported_with_its_prompt(monkeypatch):
    trainer = trainer_of(monkeypatch, "algo=ppo", "algo.minibatches=2", "guard.log_ratio=2")
    rollout = collected(trainer)
    rollout.old_logprobs[5, 2] -= 7
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    trainer.learner.update(rollout, targets, 0, trainer.memory.kl_coef)
    said: list[tuple] = []
    on_policy.reports.outliers(trainer.learner.outliers, rollout, trainer.experiment.guard, 0,
                               lambda *a, **k: said.append((a, k)))  # fmt: skip
    assert len(said) == 1
    assert said[0][1]["prompt"] == "2 + 2?" and said[0][1]["position"] == 2
    assert said[0][1]["log_ratio"] == pytest.approx(7, abs=0.5)


def test_fewer_rows_than_minibatches_are_averaged_over_the_updates_there_were(monkeypatch):
    trainer = trainer_of(monkeypatch, "algo=ppo", "algo.minibatches=4", "guard.nonfinite=skip")
    rollout = collected(trainer)
    targets = estimate(rollout, trainer.algo, trainer.memory, fixed.LIMIT)
    targets.usable[3:] = False
    stats = trainer.learner.update(rollout, targets, 0, trainer.memory.kl_coef)
    assert stats["guard/skipped_updates"] == 1  # three rows, four minibatches
    assert stats["ratio/mean"] == pytest.approx(1, abs=0.05)
    assert trainer.learner.schedule.last_epoch == 4


def test_a_share_of_a_rollout_is_scored_at_the_width_of_all_of_it(monkeypatch):
    """Dynamic sampling may leave out the longest group: what is kept is then wider than its own longest row."""
    trainer = trainer_of(monkeypatch, "algo=ppo")
    made = fixed.completions()
    wider = {name: pad(getattr(made, name), (0, 4)) for name in ("ids", "mask", "logprobs")}
    made = replace(made, **wider)
    whole = trainer.scores(made)
    monkeypatch.setattr(on_policy, "together", lambda _, make: make())
    shares = []
    for rank in (0, 1):
        trainer.accelerator = SimpleNamespace(num_processes=2, process_index=rank)
        shares.append(trainer.scores(made))
    for alone, *both in zip(whole, *shares, strict=True):
        assert alone.shape == made.mask.shape
        assert_close(torch.cat(both), alone, rtol=1e-5, atol=1e-6)


def test_the_gap_to_the_sampler_is_that_of_the_rows_that_are_finite():
    made = fixed.completions()
    old = made.logprobs - 0.25
    assert on_policy.sampler_gap(made, old)["sampler/gap"] == pytest.approx(0.25)
    broken = old.clone()
    broken[0, 0] = math.nan
    assert on_policy.sampler_gap(made, broken)["sampler/gap"] == pytest.approx(0.25)
