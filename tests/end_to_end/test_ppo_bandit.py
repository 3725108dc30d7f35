"""PPO finds the one token that is rewarded, and says so when its critic is of no use."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.helpers import BY_COMMAND, run
from tests.end_to_end.test_bandit import bold

LETTER = "tests.end_to_end.bandit:letter"
EVEN = "tests.end_to_end.bandit:even"
# Four tokens of 261, all alike to the policy at first. The KL of the best policy is 22 nats: hardly priced here.
BANDIT = ("algo=ppo", "sampling.max_new_tokens=4", "algo.kl.coef=0.001", "algo.prompts_per_step=32",
          "algo.group_size=4", "algo.micro_batch=64", "algo.minibatches=2", "algo.optimizer.lr=0.01",
          "probe.prompts=16", "probe.every=1000", "probe.greedy=false")  # fmt: skip
HEAD = ("model.lora=none", "algo.critic.kind=head", "algo.critic.coef=0.1")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=BY_COMMAND), pytest.param(2, marks=BY_COMMAND)])
def test_one_token_in_261_is_found_and_always_chosen(tmp_path, seed):
    record = run(tmp_path, *BANDIT, *HEAD, f"reward.formula={LETTER}", f"seed={seed}", "steps=30")
    first, last = (row["reward/proxy"] for row in record.phase("probe"))
    assert first < 0.1
    assert last >= 0.95


@BY_COMMAND
def test_so_it_is_with_adapters_for_policy_and_critic(tmp_path):
    """The tiny model's head is too flat for an adapter; this one's is bolder (tests/end_to_end/test_bandit.py)."""
    settings = (
        *BANDIT,
        f"model.path={bold(tmp_path / 'bold')}",
        "algo.optimizer.lr=0.02",
        "steps=16",
        "probe.samples=64",
    )
    rewarded, punished = (run(tmp_path, *settings, f"reward.formula={sign}{EVEN}") for sign in ("", "-"))
    up, down = ([row[f"reward/{EVEN}"] for row in record.phase("probe")] for record in (rewarded, punished))
    assert up[1] > up[0] + 0.1
    assert down[1] < down[0] - 0.1


def test_a_random_critic_without_warm_up_is_reported(tmp_path):
    useless = ("algo.critic.init=random", "algo.critic.lr=1e-9", "steps=4")
    record = run(tmp_path, *BANDIT, *useless, f"reward.formula={EVEN}")
    assert all(row["critic/explained_variance"] < 0 for row in record.phase("train"))
    events = [json.loads(line) for line in (record.path / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["critic", "critic"]
    assert "worse than a constant" in events[-1]["what"]
