import pytest
import torch
from torch import nan, tensor
from torch.testing import assert_close

from align.maths.advantages import gae, group_centered, group_normalized, leave_one_out, rewards_to_go


def test_lone_success_gains_what_its_siblings_lose():
    assert leave_one_out(tensor([[1.0, 0.0, 0.0]])).tolist() == [[1.0, -0.5, -0.5]]


def test_leave_one_out_is_the_centred_reward_rescaled():  # K / (K - 1), here 4 / 3
    rewards = torch.randn(5, 4)
    assert_close(leave_one_out(rewards), group_centered(rewards) * 4 / 3)


def test_leave_one_out_does_not_see_its_own_reward():
    rewards = torch.randn(1, 4)
    changed = rewards.clone()
    changed[0, 2] += 10
    baseline, moved = rewards - leave_one_out(rewards), changed - leave_one_out(changed)
    assert_close(baseline[0, 2], moved[0, 2])


def test_centred_rewards_of_a_group_sum_to_zero():
    assert group_centered(tensor([[3.0, 1.0, 2.0]])).tolist() == [[1.0, -1.0, 0.0]]


def test_group_normalized_by_hand():  # mean 0.5, std with K - 1: sqrt(4 x 0.25 / 3) = 0.57735
    advantages = group_normalized(tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert_close(advantages, tensor([[0.5, -0.5, 0.5, -0.5]]) / (0.5773503 + 1e-4))


def test_a_group_without_differences_teaches_nothing():
    for advantage in (group_centered, group_normalized, leave_one_out):
        assert advantage(torch.full((50, 8), 0.7)).abs().max() == 0
        assert advantage(torch.randn(50, 1).expand(50, 8)).abs().max() == 0  # whatever rounds in their mean


def test_groups_do_not_touch_each_other():
    rewards = torch.randn(3, 4)
    together = group_normalized(rewards)
    assert_close(together[1:2], group_normalized(rewards[1:2]))


def token_batch():
    """Rows of 0 to 5 tokens out of 5, one of them starting late; float64, with NaN wherever there is no token."""
    lengths = tensor([5, 3, 1, 0, 4])
    mask = torch.arange(5).expand(5, 5) < lengths.unsqueeze(-1)
    mask[4] = tensor([False, False, True, True, False])
    rewards, values = torch.randn(2, 5, 5, dtype=torch.float64)
    return torch.where(mask, rewards, nan), torch.where(mask, values, nan), mask


def td_errors(rewards, values, gamma):
    """r_t + gamma V_{t+1} - V_t with V = 0 after the last token; all [B, T] without NaN."""
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=-1)
    return rewards + gamma * following - values


def test_gae_by_hand():
    # gamma 0.5, lambda 0.25. deltas: 1 + 0.5 - 0.5 = 1;  0 + 0.75 - 1 = -0.25;  2 - 1.5 = 0.5
    # A_2 = 0.5;  A_1 = -0.25 + 0.125 x 0.5 = -0.1875;  A_0 = 1 - 0.125 x 0.1875 = 0.9765625.  One token: 3 - 1 = 2
    rewards = tensor([[1.0, 0.0, 2.0], [3.0, nan, nan]])
    values = tensor([[0.5, 1.0, 1.5], [1.0, nan, nan]])
    mask = tensor([[True, True, True], [True, False, False]])
    assert gae(rewards, values, mask, 0.5, 0.25).tolist() == [[0.9765625, -0.1875, 0.5], [2.0, 0.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.7, 1.0), (0.99, 0.0)])
def test_gae_is_the_double_sum_of_its_definition(gamma, lam):  # A_t = sum_l (gamma lam)^l delta_{t+l}
    rewards, values, mask = token_batch()
    deltas = td_errors(rewards.nan_to_num(0), values.nan_to_num(0), gamma)
    expected = torch.zeros_like(rewards)
    for row, t in mask.nonzero().tolist():
        last = int(mask[row].nonzero().max())
        expected[row, t] = sum((gamma * lam) ** (s - t) * deltas[row, s] for s in range(t, last + 1))
    assert_close(gae(rewards, values, mask, gamma, lam), expected, rtol=0, atol=1e-12)


def test_gae_without_discount_is_the_return_less_the_value():
    rewards, values, mask = token_batch()
    returns = rewards.nan_to_num(0).flip(-1).cumsum(-1).flip(-1)
    assert_close(gae(rewards, values, mask, 1.0, 1.0)[mask], (returns - values)[mask])


def test_gae_with_lambda_zero_is_the_td_error():
    rewards, values, mask = token_batch()
    deltas = td_errors(rewards.nan_to_num(0), values.nan_to_num(0), 0.9)
    assert_close(gae(rewards, values, mask, 0.9, 0.0)[mask], deltas[mask])


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_a_perfect_critic_leaves_no_advantage_at_any_lambda(lam):
    rewards, _, mask = token_batch()
    assert gae(rewards, rewards_to_go(rewards, mask, 0.9), mask, 0.9, lam).abs().max() < 1e-12


def test_nothing_stands_where_there_is_no_token():
    rewards, values, mask = token_batch()
    for result in (gae(rewards, values, mask, 0.9, 0.9), rewards_to_go(rewards, mask, 0.9)):
        assert result[~mask].abs().max() == 0


def test_rewards_to_go_by_hand():  # gamma 0.5: 4;  2 + 4 / 2 = 4;  1 + 4 / 2 = 3.  Second row cut: 2;  1 + 2 / 2 = 2
    rewards = tensor([[1.0, 2.0, 4.0], [1.0, 2.0, nan]])
    mask = tensor([[True, True, True], [True, True, False]])
    assert rewards_to_go(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 2.0, 0.0]]
    assert rewards_to_go(rewards, mask).tolist() == [[7.0, 6.0, 4.0], [3.0, 2.0, 0.0]]
