"""Four roles, one base: policy, reference and reward model are separate trees over the same frozen tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from align.checkpoints import Keeper
from align.data import load
from align.embedded import WHEEL_SHA256, ModelError, cache_root, tiny_folder
from align.models import Policy, load_policy, load_tokenizer
from align.reward_model import RewardModel, build_reward_model, load_reward_model
from align.rewards import Rewards, build_rewards
from align.schema import Checkpoint, Experiment
from align.trainers import trl_runs
from align.trainers.on_policy import Hooks, OnPolicyTrainer
from tests.config.test_conf import composed
from tests.end_to_end.helpers import TINY, logprobs, no_warmup

CPU = torch.device("cpu")
FROM_REWARD = ["algo=ppo", "algo.critic.init=reward", "algo.scale.normalise=none"]  # a critic that starts as its copy
TEXTS = [(5, 9, 40, 80, 81), (7, 100, 101, 102, 200, 201, 60), (30, 31, 32)]  # token ids, none of them special


def settings(*overrides: str) -> Experiment:
    return composed(*TINY, "steps=3", "algo.optimizer.lr=0.02", *overrides)


def policy_of(e: Experiment) -> Policy:
    return load_policy(e.model, CPU, torch.float32, e.seed)


def storages(model: nn.Module, *, trainable: bool = False) -> set[int]:
    return {p.data_ptr() for p in model.parameters() if p.requires_grad or not trainable}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def train(e: Experiment, policy: Policy, rewards: Rewards, learned: RewardModel | None = None) -> None:
    data = load(e.data, policy.tokenizer, e.seed, None)

    if e.algo.kind == "on_policy":
        trainer = OnPolicyTrainer(e, policy, rewards, Accelerator(cpu=True), learned)
        trainer.train(data.train_prompts, Hooks(nothing, nothing, nothing, nothing, silent(e).keeper))
    elif e.algo.kind == "sft":
        trl_runs.train_sft(silent(e), policy, data, nothing)
    else:
        trl_runs.train_preference(silent(e), policy, data, nothing)


def nothing(*_: Any, **__: Any) -> None: ...


def silent(e: Experiment) -> Any:
    """An open run that writes nothing: a checkpoint further apart than the run is long."""
    keeper = Keeper(Path("nowhere"), Checkpoint(every=e.steps + 1, keep=1), e.steps, Accelerator(cpu=True), dict)
    return SimpleNamespace(experiment=e, log=nothing, event=nothing, keeper=keeper)


def trained_reward_model(folder: Path) -> tuple[RewardModel, Path]:
    """A reward model after three updates, and its adapter on disk."""
    e = settings(*no_warmup("reward"))
    policy = policy_of(e)
    model = build_reward_model(e.model, policy.reference, policy.tokenizer, e.seed)
    data = load(e.data, policy.tokenizer, e.seed, None)
    trl_runs.train_reward(silent(e), model, data, nothing)
    model.save(folder)
    return model, folder / "adapter"


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> tuple[RewardModel, Path]:
    return trained_reward_model(tmp_path_factory.mktemp("reward"))


def test_three_roles_lie_in_one_base(reward):
    e = settings()
    policy = policy_of(e)
    scorer = load_reward_model(e.model, policy.reference, policy.tokenizer, reward[1])
    base = storages(policy.reference)
    assert len(base) > 15
    assert base == storages(policy.model) - storages(policy.model, trainable=True)
    backbone = scorer.model.get_base_model().model
    own = {p.data_ptr() for name, p in backbone.named_parameters() if "lora" in name}
    assert storages(backbone) - own == base
    assert not own & storages(policy.model, trainable=True)


@pytest.mark.parametrize("lora", ["model.lora.init=default", "model.lora.init=pissa", "model.lora=none"])
def test_only_what_is_trained_requires_grad(lora):
    policy = policy_of(settings(lora))
    every = lora == "model.lora=none"
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == (every or "lora_" in name), name
    assert storages(policy.reference, trainable=True) == set()


def test_a_loaded_reward_model_requires_no_grad(reward):
    e = settings()
    policy = policy_of(e)
    scorer = load_reward_model(e.model, policy.reference, policy.tokenizer, reward[1])
    assert storages(scorer.model, trainable=True) == set()


@pytest.mark.parametrize("init", ["default", "gaussian", "b_random", "pissa", "olora"])
@pytest.mark.parametrize("algo", ["grpo", "dapo", "reinforce_pp", "dpo", "kto", "sft"])
def test_training_moves_the_policy_and_nothing_else(algo, init):
    e = settings(*no_warmup(algo), f"model.lora.init={init}")
    policy = policy_of(e)
    opinions, weights, said = logprobs(policy.reference), snapshot(policy.reference), logprobs(policy.model)
    assert torch.equal(opinions, said)
    train(e, policy, build_rewards(e.reward.formula, load(e.data, policy.tokenizer, 0, None), None))
    assert unchanged(policy.reference, weights)
    assert torch.equal(logprobs(policy.reference), opinions)
    assert (logprobs(policy.model) - said).abs().max() > 1e-3


@pytest.mark.parametrize("algo", [["algo=grpo"], FROM_REWARD], ids=" ".join)
def test_scores_do_not_move_while_the_policy_learns_from_them(reward, algo):
    e = settings(*algo, "reward=learned", "reward.formula=learned")
    policy = policy_of(e)
    scorer = load_reward_model(e.model, policy.reference, policy.tokenizer, reward[1])
    scores, weights, said = scorer.score(TEXTS), snapshot(scorer.model), logprobs(policy.model)
    train(e, policy, build_rewards("learned", load(e.data, policy.tokenizer, 0, None), scorer), scorer)
    assert scorer.score(TEXTS) == scores
    assert unchanged(scorer.model, weights)
    assert (logprobs(policy.model) - said).abs().max() > 1e-3


def test_a_reward_model_can_be_loaded_beside_a_policy_without_moving_it(reward):
    e = settings()
    policy = policy_of(e)
    before = logprobs(policy.model), logprobs(policy.reference)
    load_reward_model(e.model, policy.reference, policy.tokenizer, reward[1])
    assert torch.equal(logprobs(policy.model), before[0]) and torch.equal(logprobs(policy.reference), before[1])


def test_training_a_reward_model_leaves_the_base_alone(tmp_path):
    e = settings(*no_warmup("reward"))
    policy = policy_of(e)
    model = build_reward_model(e.model, policy.reference, policy.tokenizer, e.seed)
    weights, opinions, scores = snapshot(policy.reference), logprobs(policy.reference), model.score(TEXTS)
    data = load(e.data, policy.tokenizer, e.seed, None)
    trl_runs.train_reward(silent(e), model, data, nothing)
    assert unchanged(policy.reference, weights)
    assert torch.equal(logprobs(policy.reference), opinions)
    assert max(abs(a - b) for a, b in zip(model.score(TEXTS), scores, strict=True)) > 1e-2


# --- the reward model ---


def test_a_score_sees_the_end_of_an_answer(reward):
    """With pad = EOS, transformers would read the score off the token before EOS, and both would be the same."""
    model = reward[0]
    eos = model.tokenizer.eos_token_id
    open_ended, ended = model.score(TEXTS), model.score([(*text, eos) for text in TEXTS])
    assert all(abs(a - b) > 1e-3 for a, b in zip(open_ended, ended, strict=True))


def test_a_score_does_not_depend_on_what_it_is_batched_with(reward):
    model = reward[0]
    assert_close(model.score(TEXTS), [model.score([text])[0] for text in TEXTS], rtol=0, atol=1e-6)


def test_pad_is_not_eos():
    tokenizer = load_tokenizer(settings().model)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_pad_is_not_eos_in_the_embedded_model_either():
    folder = cache_root() / f"smollm2-135m-{WHEEL_SHA256[:12]}"
    if not (folder / "config.json").is_file():
        pytest.skip("the embedded model is not in the cache")
    tokenizer = load_tokenizer(composed(f"model.path={folder}").model)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)


def test_scores_on_the_shared_base_are_those_of_a_model_loaded_plainly(reward):
    trained, adapter = reward
    e = settings()
    policy = policy_of(e)
    shared = load_reward_model(e.model, policy.reference, policy.tokenizer, adapter)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_folder(), num_labels=1)
    plain.config.pad_token_id = policy.tokenizer.pad_token_id
    alone = RewardModel(PeftModel.from_pretrained(plain, adapter), policy.tokenizer)
    assert_close(shared.score(TEXTS), trained.score(TEXTS), rtol=0, atol=0)
    assert_close(shared.score(TEXTS), alone.score(TEXTS), rtol=0, atol=1e-5)
    assert len(set(shared.score(TEXTS))) == len(TEXTS)


def test_a_policy_s_adapter_is_no_reward_model(tmp_path):
    e = settings()
    policy = policy_of(e)
    policy.save(tmp_path)
    with pytest.raises(ModelError, match="no score head"):
        load_reward_model(e.model, policy.reference, policy.tokenizer, tmp_path / "adapter")


def test_an_adapter_of_another_shape_is_refused(reward):
    e = settings("model.lora.rank=3")
    policy = policy_of(e)
    with pytest.raises(ModelError, match="cannot be loaded as a reward model"):
        load_reward_model(e.model, policy.reference, policy.tokenizer, reward[1])
