"""Policy, reference, critic and learned reward: four module trees over one frozen base, none of which leaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.testing import assert_close

from align.checkpoints import trainable
from align.critic import build_critic
from align.data import load
from align.forward import Batch, batch_of
from align.models import load_policy
from align.reward_model import RewardModel, build_reward_model, load_reward_model
from align.rewards import build_rewards
from align.sampling import sample
from align.stopping import Stop
from align.trainers.on_policy import Hooks, OnPolicyTrainer
from tests.config.test_conf import composed
from tests.end_to_end.helpers import TINY, logprobs
from tests.invariants.test_one_base import CPU, TEXTS, snapshot, storages, trained_reward_model, unchanged

LEARNED = ("reward=learned", "reward.formula=learned")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Any:
    return trained_reward_model(tmp_path_factory.mktemp("reward"))[1]


class Idle:
    """A keeper of nothing."""

    start, stop = None, Stop()

    def save(self, *_: Any) -> None: ...


def nothing(*_: Any, **__: Any) -> None: ...


def built(adapter: Any, *overrides: str) -> tuple[OnPolicyTrainer, RewardModel, Any]:
    e = composed(*TINY, "algo=ppo", "steps=3", "algo.optimizer.lr=0.02", *LEARNED, *overrides)
    policy = load_policy(e.model, CPU, torch.float32, e.seed)
    learned = load_reward_model(e.model, policy.reference, policy.tokenizer, adapter)
    data = load(e.data, policy.tokenizer, e.seed, None)
    rewards = build_rewards("learned", data, learned)
    return OnPolicyTrainer(e, policy, rewards, Accelerator(cpu=True), learned), learned, data


def test_four_roles_lie_in_one_base(adapter):
    trainer, learned, _ = built(adapter)
    policy = trainer.policy
    base = storages(policy.reference)
    trees = {"policy": policy.model, "critic": trainer.scorers.critic, "reward": learned.model}
    own = {name: storages(tree) - base for name, tree in trees.items()}
    for name, tree in trees.items():
        frozen = {p.data_ptr() for n, p in tree.named_parameters() if "lora_" not in n and "score" not in n}
        assert frozen <= base, name
    assert not own["policy"] & own["critic"] and not own["critic"] & own["reward"]


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_ppo_moves_policy_and_critic_and_nothing_else(adapter, critic):
    trainer, learned, data = built(adapter, f"algo.critic.kind={critic}")
    policy = trainer.policy
    opinions, scores = logprobs(policy.reference), learned.score(list(TEXTS))
    weights, judge = snapshot(policy.reference), snapshot(learned.model)
    before = {name: p.clone() for name, p in trainable(trainer.scorers).items()}
    trainer.train(data.train_prompts, Hooks(nothing, nothing, nothing, nothing, Idle()))
    assert unchanged(policy.reference, weights) and unchanged(learned.model, judge)
    assert torch.equal(logprobs(policy.reference), opinions)
    assert learned.score(list(TEXTS)) == scores
    moved = {name.split(".")[0] for name, p in trainable(trainer.scorers).items() if not torch.equal(p, before[name])}
    assert moved == {"policy", "critic"}


@torch.no_grad()
def test_a_critic_made_from_the_reward_model_reads_its_score_at_every_token(adapter):
    """V_t is what the reward model would say of prompt and completion up to the token before t."""
    trainer, learned, data = built(adapter, "algo.critic.init=reward", "algo.scale.normalise=none")
    policy, prompts = trainer.policy, data.train_prompts[:3]
    completions = sample(policy, prompts, 2, trainer.experiment.sampling, 0)
    batch = batch_of(completions, policy.tokenizer.pad_token_id, CPU)
    (values,) = trainer.scorers(batch, "critic")
    for row, (prompt, ids) in enumerate(zip(completions.prompt_ids, completions.ids, strict=True)):
        length = int(completions.lengths[row])
        prefixes = [(*prompt, *ids[:t].tolist()) for t in range(length)]
        assert_close(values[row, :length], torch.tensor(learned.score(prefixes)), rtol=1e-5, atol=1e-5)
        assert (values[row, length:] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize(("init", "same"), [("zero", True), ("random", False)])
def test_a_new_critic_says_nothing_or_something_that_the_seed_decides(adapter, init, same):
    trainer, _, _ = built(adapter, f"algo.critic.init={init}")
    e, policy = trainer.experiment, trainer.policy
    ids = torch.tensor([TEXTS[1]])
    whole = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, whole, torch.tensor([2]), whole[:, 2:])

    def said(seed: int) -> Tensor:
        return build_critic(e.algo.critic, e.model, policy, None, seed)(batch)

    assert torch.equal(said(1), said(1))
    assert torch.equal(said(1), said(2)) == same
    assert (said(1).abs().max() == 0) == same


@pytest.mark.slow
def test_four_roles_cost_less_than_four_tenths_of_four_models():
    """Bytes of parameters, gradients and Adam's moments on SmolLM2; separate models have the same adapters."""
    e = composed("algo=ppo", "data=arithmetic", "device=cpu", "dtype=bfloat16")
    policy = load_policy(e.model, CPU, torch.bfloat16, 0)
    critic = build_critic(e.algo.critic, e.model, policy, None, 0)
    reward = build_reward_model(e.model, policy.reference, policy.tokenizer, 1).model.requires_grad_(False)
    trees = [policy.model, policy.reference, critic, reward]
    storage = {p.data_ptr(): p.numel() * p.element_size() for tree in trees for p in tree.parameters()}
    separate = sum(p.numel() * p.element_size() for tree in trees for p in tree.parameters())
    trained = 3 * sum(p.numel() * p.element_size() for tree in trees for p in tree.parameters() if p.requires_grad)
    share = (sum(storage.values()) + trained) / (separate + trained)
    print(
        f"four roles: {(sum(storage.values()) + trained) / 1e6:.0f} MB of {(separate + trained) / 1e6:.0f}: {share:.3f}"
    )
    assert share <= 0.4
