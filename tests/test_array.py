"""The crossing between arrays and tensors."""

import numpy as np
import pytest
import torch
from sklearn.utils import Bunch

from sklearn_kd._array import on_arrays


@on_arrays
def describe(frame, values, *, generator=None, init="zero", flag=False):
    assert isinstance(values, torch.Tensor)
    assert values.dtype == torch.float64
    count = torch.tensor(len(values))
    return {"twice": 2 * values, "parts": (values.sum(), count), "seen": (frame, generator, flag)}


class Frame:
    """Stands for anything that is not data."""


@pytest.mark.parametrize(
    ("values", "array", "floating"),
    [
        ([1.0, 2.0], np.ndarray, np.float64),
        (range(1, 3), np.ndarray, np.float64),
        (np.array([1, 2], dtype=np.float32), np.ndarray, np.float32),
        (torch.tensor([1.0, 2.0]), torch.Tensor, torch.float32),
        (torch.tensor([1, 2]), torch.Tensor, torch.float64),
    ],
)
def test_data_is_converted_and_answered_in_kind(values, array, floating):
    frame, generator = Frame(), np.random.default_rng(0)
    answer = describe(frame, values, generator=generator, flag=np.True_)
    assert isinstance(answer, Bunch)
    assert isinstance(answer.twice, array)
    assert answer.twice.dtype == floating
    assert answer.twice.tolist() == [2.0, 4.0]
    total, count = answer.parts
    assert total.dtype == floating
    assert count.dtype in (torch.int64, np.int64)  # integers are not rounded
    seen_frame, seen_generator, flag = answer.seen
    assert seen_frame is frame
    assert seen_generator is generator
    assert flag is np.True_


def test_the_first_array_decides_even_by_keyword():
    answer = describe(Frame(), generator="none", values=torch.ones(3))
    assert isinstance(answer.twice, torch.Tensor)
