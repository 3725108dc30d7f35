import pytest
import torch
from torch import nan, tensor
from torch.testing import assert_close

from align.maths.masked import masked_mean, masked_sum, masked_var, whiten

EMPTY = torch.zeros(2, 3, dtype=torch.bool)


def random_batch():
    """float64 values around 5, half of them masked away; the padded ones are NaN."""
    mask = torch.rand(6, 7) < 0.5
    values = 5 + 3 * torch.randn(6, 7, dtype=torch.float64)
    return torch.where(mask, values, nan), mask


def test_a_padded_position_adds_nothing_even_when_it_is_nan():
    values, mask = tensor([[1.0, 2.0, nan], [4.0, nan, nan]]), tensor([[True, True, False], [True, False, False]])
    assert masked_sum(values, mask).item() == 7.0
    assert masked_mean(values, mask, -1).tolist() == [1.5, 4.0]
    assert masked_mean(values, mask).item() == pytest.approx(7.0 / 3)


def test_the_gradient_of_a_padded_position_is_zero():
    values = tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    masked_mean(values, tensor([[True, False, True]])).backward()
    assert values.grad.tolist() == [[0.5, 0.0, 0.5]]


def test_a_row_without_counted_positions_has_mean_zero():
    assert masked_mean(tensor([[5.0, 5.0]]), torch.zeros(1, 2, dtype=torch.bool), -1).tolist() == [0.0]


def test_variance_by_hand():  # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9, over n = 3 and not n - 1
    values, mask = tensor([[1.0, 2.0, nan], [6.0, nan, nan]]), tensor([[True, True, False], [True, False, False]])
    assert_close(masked_var(values, mask), tensor(14 / 3))


def test_whitening_by_hand_is_over_the_batch_and_not_over_a_row():  # 1 and 5: mean 3, standard deviation 2
    values, mask = tensor([[1.0, nan], [nan, 5.0]]), tensor([[True, False], [False, True]])
    assert_close(whiten(values, mask), tensor([[-1.0, 0.0], [0.0, 1.0]]))
    assert_close(whiten(values, mask, shift_mean=False), tensor([[2.0, 0.0], [0.0, 4.0]]))


def test_whitened_values_have_mean_zero_and_variance_one():
    values, mask = random_batch()
    kept = whiten(values, mask)[mask]
    assert abs(kept.mean()) < 1e-12
    assert kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-7)  # eps = 1e-8 against a variance near 9


def test_without_the_shift_whitening_keeps_the_mean_and_still_sets_the_variance():
    values, mask = random_batch()
    kept = whiten(values, mask, shift_mean=False)[mask]
    assert_close(kept.mean(), values[mask].mean())
    assert kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_does_not_see_padding_and_leaves_zero_there(shift_mean):
    values, mask = random_batch()
    whitened = whiten(values, mask, shift_mean=shift_mean)
    alone = values[mask].unsqueeze(0)  # the same numbers in a batch that has no padding
    assert_close(whitened[mask], whiten(alone, torch.ones_like(alone, dtype=torch.bool), shift_mean=shift_mean)[0])
    assert whitened[~mask].abs().max() == 0


def test_one_value_or_none_has_no_variance_and_whitens_to_zero():
    one = EMPTY.clone()
    one[1, 0] = True
    values = torch.full((2, 3), 4.0)
    for mask in (EMPTY, one):
        assert masked_var(values, mask) == 0
        assert whiten(values, mask).tolist() == [[0.0] * 3] * 2  # eps: not 0 / 0
    assert whiten(values, one, shift_mean=False).tolist() == [[0.0] * 3, [4.0, 0.0, 0.0]]


def test_equal_values_whiten_to_zero_at_any_level():
    values = torch.full((7, 9), 1000.7)
    assert whiten(values, torch.ones_like(values, dtype=torch.bool)).abs().max() == 0
