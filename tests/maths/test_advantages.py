import torch
from torch import tensor
from torch.testing import assert_close

from align.maths.advantages import group_centered, group_normalized, leave_one_out


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
