"""Results do not depend on the state of the process, and leave it as it was."""

import functools
import threading

import numpy as np
import pytest
import torch
from process_state import default_dtype, deterministic, state_of_numpy
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from sklearn_kd import (
    LinearizedKDStudent,
    LinearizedKDStudentCV,
    NTKTeacher,
    TorchStudent,
    TorchTeacher,
)
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.solvers import PCG, Cholesky, Nystrom, Refinement

X, Y = make_classification(n_samples=70, n_features=5, random_state=0)
X_NEW = X[::7] + 0.1
FROZEN = FrozenEstimator(LogisticRegression().fit(X, Y))


def module():
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net.double()


NET = module()


def predictions(estimator):
    return estimator.fit(X, Y).predict_proba(X_NEW)


def path():
    student = LinearizedKDStudent(LogisticRegression()).fit(X, Y)
    found = student.prefix_path(
        X_NEW, sizes=[5, 70], n_permutations=2, init="random", random_state=0
    )
    return np.concatenate([np.ravel(value) for value in found.values()])


WORK = {
    "teacher": lambda: predictions(NTKTeacher()),
    "flow": lambda: predictions(NTKTeacher(stopping_time=10.0)),
    "stopped": lambda: predictions(LinearizedKDStudent(FROZEN, stopping_time=10.0)),
    "stopped, three classes": lambda: (
        LinearizedKDStudent(stopping_time=[1.0, 10.0])
        .fit(X, np.arange(70) % 3, teacher_logits=X[:, :3])
        .predict_proba(X_NEW)
    ),
    "torch teacher": lambda: TorchTeacher(NET, [0, 1]).predict_proba(X_NEW),
    "cholesky": lambda: predictions(LinearizedKDStudent(solver=Cholesky())),
    "refinement": lambda: predictions(LinearizedKDStudent(solver=Refinement())),
    "pcg": lambda: predictions(LinearizedKDStudent(solver=PCG(random_state=0))),
    "nystrom": lambda: predictions(LinearizedKDStudent(solver=Nystrom(20, random_state=0))),
    "uniform": lambda: predictions(
        LinearizedKDStudent(solver=Nystrom(20, landmarks="uniform", random_state=0))
    ),
    "erf": lambda: predictions(LinearizedKDStudent(kernel=NTK(activation="erf"), ridge=0.1)),
    "network": lambda: predictions(
        LinearizedKDStudent(
            TorchTeacher(NET, [0, 1]), kernel=EmpiricalNTK(NET), init="network", ridge=0.1
        )
    ),
    "search": lambda: predictions(LinearizedKDStudentCV()),
    "validation": lambda: (
        LinearizedKDStudentCV(LogisticRegression())
        .fit(X[:50], Y[:50], X_val=X[50:], y_val=Y[50:])
        .predict_proba(X_NEW)
    ),
    "several teachers": lambda: predictions(
        LinearizedKDStudentCV([FROZEN, LogisticRegression(C=0.1)], cv=3)
    ),
    "search by pass": lambda: predictions(
        LinearizedKDStudentCV(FROZEN, solver=Nystrom(20, random_state=0))
    ),
    "trained network": lambda: predictions(
        TorchStudent(
            torch.nn.Sequential(NET, torch.nn.Dropout(0.1)), FROZEN, batch_size=20, random_state=0
        )
    ),
    "built network": lambda: predictions(
        TorchStudent(
            functools.partial(torch.nn.Linear, 5, 1, dtype=torch.float64), FROZEN, random_state=0
        )
    ),
    "pilots": lambda: (
        TorchStudent(functools.partial(torch.nn.Linear, 5, 1, dtype=torch.float64), random_state=0)
        .pilot_kernel(X, teacher_logits=X[:, 0], n_pilots=2)
        .initial_outputs(X_NEW)
    ),
    "prefix path": path,
    "gradient": lambda: NTK()(X, eval_gradient=True)[1],
}


STATES = {
    "default dtype": lambda: default_dtype(torch.float64),
    "half": lambda: default_dtype(torch.float16),
    "default device": lambda: torch.device("meta"),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "numpy's errors": lambda: np.errstate(all="raise"),
    "deterministic": deterministic,
}


@pytest.fixture(scope="module")
def expected():
    return {name: work() for name, work in WORK.items()}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", WORK)
def test_results_are_those_of_a_fresh_process(name, state, expected):
    with STATES[state]():
        found = WORK[name]()
    np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("name", WORK)
def test_the_state_is_left_as_it_was(name):
    np.random.seed(7)  # noqa: NPY002 - the state that must not matter
    torch.manual_seed(7)
    before, draws = state_of_numpy(), torch.get_rng_state()
    threads, running = torch.get_num_threads(), threading.active_count()
    WORK[name]()
    assert state_of_numpy() == before
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert threading.active_count() <= running + 1


@pytest.mark.parametrize("name", WORK)
def test_seeds_of_the_process_do_not_matter(name, expected):
    np.random.seed(1)  # noqa: NPY002 - likewise
    torch.manual_seed(1)
    np.testing.assert_array_equal(WORK[name](), expected[name])
