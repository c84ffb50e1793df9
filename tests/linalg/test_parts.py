"""Long operations in parts give what one call gives, and can be interrupted between two of them."""

import signal

import pytest
import torch

from sklearn_kd.linalg import _parts
from sklearn_kd.linalg._parts import parts, product, solve_triangular

CPU = torch.device("cpu")


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", [0, 1, 7, 8])
@pytest.mark.parametrize("operations", [0, 1, 2**33, 2**34, 2**40])
def test_parts_cover_every_item_once_and_take_no_more_than_a_call(length, operations):
    found = list(parts(length, operations, CPU))
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(length))
    for part in found:
        assert part.stop - part.start == 1 or (part.stop - part.start) * operations <= 2**34


def test_a_gpu_is_given_everything_at_once():
    assert list(parts(9, 2**40, torch.device("cuda"))) == [slice(0, 9)]


@pytest.mark.parametrize("operations_per_call", [2**34, 500, 1])
def test_product_and_solve_do_not_depend_on_the_parts(monkeypatch, operations_per_call):
    A, B, T = normal(7, 20), normal(20, 5), normal(20, 20).tril() + 20 * torch.eye(20)
    monkeypatch.setattr(_parts, "OPERATIONS_PER_CALL", operations_per_call)
    torch.testing.assert_close(product(A, B), A @ B)
    lower = T.T.contiguous().T  # column-major, as a factor is
    torch.testing.assert_close(T @ solve_triangular(lower, B, upper=False), B)
    torch.testing.assert_close(T.T @ solve_triangular(lower.T, B, upper=True), B)


def test_ctrl_c_is_answered_after_the_call_in_progress(ctrl_c, monkeypatch):
    calls, solve = [], torch.linalg.solve_triangular

    def interrupted(*args, **options):
        result = solve(*args, **options)
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(_parts, "OPERATIONS_PER_CALL", 1)
    monkeypatch.setattr(torch.linalg, "solve_triangular", interrupted)
    with pytest.raises(KeyboardInterrupt):
        solve_triangular(torch.eye(20).double(), normal(20, 5), upper=False)
    assert len(calls) == 2
