"""The on-policy loop against TRL's GRPOTrainer and RLOOTrainer on one fixed rollout: advantages, loss and gradient.

Our side is the trainer's own `collect`, `estimate` and `update`, with the gradient read where the optimizer would take
it. Theirs is the trainer's own scoring of the same completions and its own loss. Reference, policy and data are shared.
"""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.rewards import get_soft_overlong_punishment

from align.maths.policy import Denominators
from align.trainers import learner
from tests.trainers import fixed_rollout as fixed

LOSS_ERROR = 1e-5  # relative; float32
GRADIENT_ERROR = 1e-5  # norm of the difference over the norm
COSINE = 1 - 1e-6

# TRL multiplies the KL term by the ratio unless told otherwise: the value is the same on-policy, the gradient is not.
PLAIN = dict(use_bias_correction_kl=False)
GRPO = dict(loss_type="grpo", scale_rewards="group", beta=0.04, **PLAIN)
DR_GRPO = dict(loss_type="dr_grpo", scale_rewards="none", beta=0.0, **PLAIN)
RLOO = dict(beta=0.05)
CLIP = ["algo.epochs=2", "algo.ratio.clip_low=0.05", "algo.ratio.clip_high=0.1"]
CLIPPED = dict(num_iterations=2, epsilon=0.05, epsilon_high=0.1)
WITH_KL = ["algo.kl={where: loss, estimator: k3, coef: 0.04}"]
NO_KL = ["algo.kl={where: none, estimator: null, coef: null}"]
SEQUENCE = dict(importance_sampling_level="sequence")
GSPO = ["algo=grpo", "algo.ratio.level=sequence_mean"]
DAPO = ["algo=grpo", "algo.aggregate=token_mean"]

CASES = {  # ours, theirs
    "grpo": (["algo=grpo"], GRPO),
    "grpo, several updates": (["algo=grpo", *CLIP], GRPO | CLIPPED),
    "grpo, temperature": (["algo=grpo", "sampling.temperature=0.7", *CLIP], GRPO | CLIPPED | {"temperature": 0.7}),
    "grpo, dual clip": (["algo=grpo", *CLIP, "algo.ratio.clip_dual=1.15"], GRPO | CLIPPED | {"delta": 1.15}),
    "gspo": (["algo=gspo", "algo.minibatches=1", *CLIP], GRPO | CLIPPED | SEQUENCE | {"beta": 0.0}),
    "gspo, KL": ([*GSPO, *CLIP], GRPO | CLIPPED | SEQUENCE),
    "dapo": (
        ["algo=dapo", "algo.minibatches=1", "algo.truncation.ramp=0.25", *CLIP],
        GRPO | CLIPPED | {"loss_type": "dapo", "beta": 0.0, "overlong_tokens": 3},
    ),
    "dapo, KL": ([*DAPO, *CLIP], GRPO | CLIPPED | {"loss_type": "dapo"}),
    "dr_grpo": (["algo=dr_grpo"], DR_GRPO),
    "dr_grpo, several updates": (["algo=dr_grpo", *CLIP], DR_GRPO | CLIPPED),
    "dr_grpo, KL": (["algo=dr_grpo", *WITH_KL, *CLIP], DR_GRPO | CLIPPED | {"beta": 0.04}),
    "rloo": (["algo=rloo"], RLOO),
    "rloo, several updates": (["algo=rloo", *CLIP], RLOO | CLIPPED),
}


class Theirs:
    """TRL's trainer on our policy. The adapter as it is now becomes its reference: build it before the policy moves."""

    def __init__(self, algo: str, settings: dict[str, Any], policy: Any, folder: Any):
        kind, config = (RLOOTrainer, RLOOConfig) if algo == "rloo" else (GRPOTrainer, GRPOConfig)
        settings, rewards = dict(settings), [lambda prompts, **_: list(fixed.REWARDS)]
        if tokens := settings.pop("overlong_tokens", None):
            rewards.append(get_soft_overlong_punishment(fixed.LIMIT, tokens))
        args = config(
            output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            per_device_train_batch_size=8, num_generations=4, max_completion_length=fixed.LIMIT, **settings,
        )  # fmt: skip
        self.rows = [{"prompt": [dict(m) for m in prompt.messages]} for prompt in fixed.PROMPTS for _ in range(4)]
        self.trainer = kind(
            model=policy.model, args=args, processing_class=policy.tokenizer,
            train_dataset=datasets.Dataset.from_list(self.rows), reward_funcs=rewards,
        )  # fmt: skip
        rollout = fixed.completions()
        ids = [row[mask].tolist() for row, mask in zip(rollout.ids, rollout.mask, strict=True)]
        self.trainer._generate_single_turn = lambda *_: ids if algo == "rloo" else (ids, None)
        self.trainer.current_gradient_accumulation_steps = 1  # set when training starts

    def score(self) -> dict[str, Tensor]:
        """Its rollout, advantages included, by its own code; the tokens are checked to be ours."""
        self.trainer.model.train()
        inputs = self.trainer._generate_and_score_completions(self.rows)
        rollout = fixed.completions()
        for row, mask, prompt in zip(inputs["prompt_ids"], inputs["prompt_mask"], rollout.prompt_ids, strict=True):
            assert row[mask.bool()].tolist() == list(prompt)
        assert torch.equal(inputs["completion_ids"], rollout.ids)
        return inputs

    def gradient(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.trainer.model.train()
        self.trainer.model.zero_grad()
        loss = self.trainer._compute_loss(self.trainer.model, inputs)
        loss.backward()
        return loss, torch.cat([p.grad.flatten() for p in self.trainer.model.parameters() if p.requires_grad])

    def logged(self, key: str) -> float:
        return self.trainer._metrics["train"][key][-1]


def both(overrides: list[str], settings: dict[str, Any], folder: Any, monkeypatch: Any) -> tuple[Any, Theirs, Any]:
    """Our loop and theirs on a policy that has left its reference, each with the rollout scored. Where several updates
    are made of one rollout the policy then moves on: what follows is an update after the first."""
    experiment, policy = fixed.experiment(*overrides), fixed.policy(moved=False)
    theirs = Theirs(experiment.algo.name, settings, policy, folder)
    fixed.move(policy.model, 0.05, seed=1)
    ours, inputs = fixed.Fixed(experiment, policy, monkeypatch), theirs.score()
    if experiment.algo.epochs > 1:
        fixed.move(policy.model, 0.01, seed=2)
    return ours, theirs, inputs


def assert_same_step(case: str, ours: Any, theirs: Theirs, inputs: Any, factor: float = 1.0) -> dict[str, float]:
    """Loss and gradient are theirs times `factor`. Returns what our update logged."""
    stats, gradients = ours.gradients()
    loss, gradient = (factor * x for x in theirs.gradient(inputs))
    # On-policy the loss of RLOO is the mean advantage, 0: its error is measured against the advantages' size. After an
    # update GSPO's is what is left of them, 1 % (0.006): packed and padded rows round it differently, by 2e-7.
    size = ours.targets.advantages.abs().mean().item()
    scale = max(abs(loss.item()), size if ours.learner.updates == 1 else 0.1 * size)
    error = abs(stats["loss"] - loss.item()) / scale
    difference = ((gradients[0] - gradient).norm() / gradient.norm()).item()
    cosine = torch.cosine_similarity(gradients[0].double(), gradient.double(), dim=0).item()
    print(
        f"{case}: loss {loss.item():.4f} error {error:.1e}, gradient error {difference:.1e} cosine 1 - {1 - cosine:.1e}"
    )
    assert error <= LOSS_ERROR
    assert difference <= GRADIENT_ERROR
    assert cosine > COSINE
    return stats


@pytest.mark.parametrize("case", CASES)
def test_advantages_loss_and_gradient_are_trls(case, tmp_path, monkeypatch):
    ours, theirs, inputs = both(*CASES[case], tmp_path, monkeypatch)
    assert_close(ours.targets.advantages[:, 0], inputs["advantages"], rtol=1e-5, atol=1e-6)
    stats = assert_same_step(case, ours, theirs, inputs)
    if ours.learner.updates == 1:
        assert stats["ratio/mean"] == pytest.approx(1) and stats["ratio/clipped"] == 0
    else:
        assert 0.1 < stats["ratio/clipped"] < 0.9, "the clip acts on some and not on others"


def test_both_sides_of_the_clip_act_and_as_often_as_in_trl(tmp_path, monkeypatch):
    ours, theirs, inputs = both(*CASES["grpo, several updates"], tmp_path, monkeypatch)
    stats = assert_same_step("grpo, both sides", ours, theirs, inputs)
    low, high = theirs.logged("clip_ratio/low_mean"), theirs.logged("clip_ratio/high_mean")
    assert low > 0.05 and high > 0.05
    assert stats["ratio/clipped"] == pytest.approx(low + high, rel=1e-6)


def test_the_dual_clip_acts_on_tokens_that_the_clip_leaves_alone(tmp_path, monkeypatch):
    ours, theirs, inputs = both(*CASES["grpo, dual clip"], tmp_path, monkeypatch)
    stats = assert_same_step("grpo, dual clip", ours, theirs, inputs)
    low, high = theirs.logged("clip_ratio/low_mean"), theirs.logged("clip_ratio/high_mean")
    assert stats["ratio/clipped"] == pytest.approx(low + high, rel=1e-6)
    assert stats["ratio/clipped_dual"] > 0.02


def test_kl_and_entropy_are_logged_as_trl_logs_them(tmp_path, monkeypatch):
    ours, theirs, inputs = both(*CASES["grpo, temperature"], tmp_path, monkeypatch)
    stats = assert_same_step("grpo, logged", ours, theirs, inputs)
    assert stats["kl/k3"] == pytest.approx(theirs.logged("kl"), rel=1e-5)
    assert stats["policy/entropy"] == pytest.approx(theirs.logged("entropy"), rel=1e-5)


def test_rloos_kl_is_in_the_advantages(tmp_path, monkeypatch):
    ours, theirs, inputs = both(*CASES["rloo"], tmp_path, monkeypatch)
    kl = (ours.rollout.old_logprobs - ours.rollout.reference_logprobs).sum(-1)
    shaped = (torch.tensor(fixed.REWARDS) - 0.05 * kl).view(2, 4)
    siblings = torch.stack([shaped[:, [j for j in range(4) if j != i]].mean(-1) for i in range(4)], -1)
    assert kl.abs().min() > 0.01
    assert_close(inputs["advantages"], (shaped - siblings).flatten(), rtol=1e-5, atol=1e-6)
    assert_close(ours.targets.advantages[:, 0], inputs["advantages"], rtol=1e-5, atol=1e-6)


# Sequence means are over the sequences that count; TRL also divides by those that it masks. Token means agree.
@pytest.mark.parametrize(("algo", "loss_type", "factor"), [(DAPO, "dapo", 1.0), (["algo=grpo"], "grpo", 8 / 6)])
def test_masked_truncated_completions_are_trls_up_to_the_count(algo, loss_type, factor, tmp_path, monkeypatch):
    overrides = [*algo, *CLIP, "algo.truncation.mode=mask"]
    settings = GRPO | CLIPPED | {"loss_type": loss_type, "mask_truncated_completions": True}
    ours, theirs, inputs = both(overrides, settings, tmp_path, monkeypatch)
    assert ours.targets.mask.sum(-1).tolist() == [10, 4, 0, 2, 1, 12, 0, 7]
    assert_same_step(f"{loss_type}, masked", ours, theirs, inputs, factor)


SETTINGS = {
    "grpo": ["algo=grpo"],
    "grpo, clipped": ["algo=grpo", "algo.epochs=1", "algo.minibatches=2", *CLIP[1:]],
    "gspo": ["algo=gspo", "algo.minibatches=2", *CLIP[1:]],  # clipped as tightly as in its paper, no gradient is left
    "gspo, KL": GSPO,
    "dapo": ["algo=dapo"],
    "dapo, masked": [*DAPO, "algo.truncation.mode=mask"],
    "dr_grpo": ["algo=dr_grpo"],
    "rloo": ["algo=rloo"],
    "rloo, two minibatches": ["algo=rloo", "algo.minibatches=2"],
    "dapo, two minibatches, masked": [*DAPO, "algo.minibatches=2", "algo.truncation.mode=mask"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_change_nothing(name, monkeypatch):
    steps = []
    for rows in (1, 8):
        loop = fixed.Fixed(fixed.experiment(*SETTINGS[name], f"algo.micro_batch={rows}"), fixed.policy(), monkeypatch)
        fixed.move(loop.trainer.policy.model, 0.01, seed=2)
        steps.append(loop.gradients())
    (one_stats, one), (all_stats, whole) = steps
    assert len(one) == len(whole) == loop.learner.updates
    for a, b in zip(one, whole, strict=True):
        assert ((a - b).norm() / b.norm()).item() <= 1e-5
    assert one_stats == pytest.approx(all_stats, rel=1e-5, abs=1e-6)


def denominators(monkeypatch: Any, *overrides: str) -> list[Denominators]:
    """What the micro-batches of an update are divided by."""
    loop = fixed.Fixed(fixed.experiment(*overrides), fixed.policy(), monkeypatch)
    calls = fixed.watch(monkeypatch, learner, "policy_loss")
    loop.gradients()
    return [args[-1] for args in calls]


def test_every_micro_batch_is_divided_by_the_counts_of_the_whole_step(monkeypatch):
    # 10 + 4 + 12 + 2 + 1 + 12 + 12 + 7 tokens; without the two truncated ones 24 fewer
    assert denominators(monkeypatch, "algo=grpo") == [Denominators(60, 8, fixed.LIMIT)] * 4
    masked = denominators(monkeypatch, "algo=grpo", "algo.truncation.mode=mask")
    assert masked == [Denominators(36, 6, fixed.LIMIT)] * 4


def test_minibatches_of_one_rollout_have_their_own_counts(monkeypatch):
    first, also_first, second, also_second = denominators(monkeypatch, "algo=grpo", "algo.minibatches=2")
    assert first == also_first and second == also_second
    assert first.tokens + second.tokens == 60 and first.sequences == second.sequences == 4


def test_a_silent_groups_backward_pass_is_left_out_and_nothing_else(monkeypatch):
    rewards = [1.0] * 4 + [0.0, 0.0, 0.0, 1.0]  # the first prompt's answers are told apart by nothing
    loop = fixed.Fixed(fixed.experiment("algo=grpo", *NO_KL), fixed.policy(), monkeypatch, rewards)
    skipped, (gradient,) = loop.gradients()
    loop = fixed.Fixed(fixed.experiment("algo=grpo", *NO_KL), fixed.policy(), monkeypatch, rewards)
    backward = fixed.watch(monkeypatch, loop.learner.accelerator, "backward")
    loop.gradients()
    assert len(backward) == 2  # micro-batches of two of its four answers; the silent group has none
    monkeypatch.setattr(loop.learner, "split", lambda _, rows: [(True, rows)])
    whole, (same,) = loop.gradients()
    assert torch.equal(gradient, same)
    assert skipped == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("algo", ["grpo", "dr_grpo", "rloo"])
def test_groups_of_equal_rewards_and_no_kl_leave_every_weight_as_it_was(algo, monkeypatch):
    overrides = [f"algo={algo}", *NO_KL]
    for rewards, still in (([1.0] * 4 + [0.0] * 4, True), ([1.0] * 4 + [0.0, 0.0, 0.0, 1.0], False)):
        loop = fixed.Fixed(fixed.experiment(*overrides), fixed.policy(), monkeypatch, rewards)
        before = [p.detach().clone() for p in loop.trainer.policy.model.parameters()]
        stats = loop.update()
        after = list(loop.trainer.policy.model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is still
        assert (stats["optim/grad_norm"] == 0) is still
        assert loop.targets.stats["group/zero_signal"] == (1.0 if still else 0.5)
