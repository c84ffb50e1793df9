"""Kernels do not depend on torch's global state, and leave it as it was."""

import contextlib
import re

import numpy as np
import pytest
import torch
from process_state import default_dtype, state_of_numpy

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.kernels._tiles import in_parallel
from sklearn_kd.linalg._cholesky import factor_in_place, smallest_eigenvalue
from sklearn_kd.linalg._operator import TiledOperator
from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky

X = np.random.default_rng(0).normal(size=(12, 3))


@contextlib.contextmanager
def default_device(device):
    before = torch.get_default_device()
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(before)


STATES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "another device": lambda: default_device("meta"),
}


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def infinite():
    results = []
    for activation in ("relu", "erf", "gelu"):
        for rows in (X, 1e4 * X):  # the large ones are nearly parallel for smooth activations
            kernel = NTK(depth=2, activation=activation)
            results += [*kernel(rows, eval_gradient=True), kernel(rows, X), kernel.diag(rows)]
    return results


def empirical(module):
    kernel = EmpiricalNTK(module)
    function = kernel.to_torch()
    rows = torch.zeros(X.shape, dtype=torch.float64, device="cpu")  # made in the mode that holds
    rows += torch.as_tensor(X, device="cpu")
    storage = torch.zeros(len(X), len(X), dtype=torch.float64, device="cpu")
    function.gram(rows, out=storage)
    products = [function.block(rows, rows[:2]), function.matmat(rows, rows, rows)]
    direct = [kernel(X), kernel(X, X[:3]), kernel.diag(X), kernel.initial_outputs(X)]
    return direct + [part.numpy() for part in (storage, *products)]


def factors():
    rows = torch.as_tensor(X, device="cpu")
    kernel = NTK().to_torch()
    operator = TiledOperator(kernel, rows)
    draws = torch.Generator("cpu").manual_seed(0)
    partial = randomly_pivoted_cholesky(operator, 6, generator=draws, block_size=3)
    lower, _ = factor_in_place(lambda: kernel.gram(rows))
    return [part.numpy() for part in (*partial, operator.matmat(rows), lower)]


@pytest.mark.parametrize("state", STATES)
def test_results_are_the_same_in_any_state(state, module):
    expected = [*infinite(), *empirical(module), *factors()]
    with STATES[state]():
        found = [*infinite(), *empirical(module), *factors()]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("state", STATES)
def test_the_message_about_the_smallest_eigenvalue_is_too(state):
    matrix = torch.linspace(-1, 1, 1200, dtype=torch.float64).diag()
    expected = smallest_eigenvalue(matrix)
    assert -1 - 1e-12 <= expected < 0
    message = f"eigenvalue is about {expected:.3g}"
    with STATES[state](), pytest.raises(NotPSDError, match=re.escape(message)):
        factor_in_place(matrix.clone)


def test_global_generators_are_left_as_they_were(module):
    class Drawing(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs + torch.rand_like(inputs))

    drawing = EmpiricalNTK(Drawing(3, 2))
    before, draws = state_of_numpy(), torch.get_rng_state()
    infinite(), empirical(module), factors()
    with pytest.raises(ValueError, match="draws random numbers"):
        drawing(X)
    assert state_of_numpy() == before
    assert torch.equal(torch.get_rng_state(), draws)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_thread_count_is_restored_after_errors_and_nested_calls(two_threads):
    out = torch.empty(0)

    def fail(tile):
        raise ArithmeticError(tile)

    def nested(tile):
        in_parallel(seen.append, [(tile,), (tile,)], out)

    seen = []
    with pytest.raises(ArithmeticError):
        in_parallel(fail, [(0,), (1,), (2,)], out)
    assert torch.get_num_threads() == 2
    in_parallel(nested, [(0,), (1,), (2,)], out)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]
    assert torch.get_num_threads() == 2
