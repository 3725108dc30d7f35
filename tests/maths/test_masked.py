import pytest
import torch
from torch import nan, tensor

from align.maths.masked import masked_mean, masked_sum


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
