"""EmpiricalNTK wherever kernels go, and the student that it linearizes."""

import copy
import pickle
import types

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import scale
from sklearn.svm import SVC
from torch import nn
from torch_modules import ZOO, NTKParametrised, Transformer, as_inputs, mlp, rows_for

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.linalg import TangentFrame

N = 8


def network(n_features, n_outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(n_features, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, n_outputs)
    ).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module


@pytest.fixture
def problem():
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X)[:80, :6]
    teacher_logits = 3.0 * X[:, 0] - X[:, 3] + 0.5
    return X, y[:80], teacher_logits


@pytest.mark.parametrize("name", ["mlp, four outputs", "resnet", "transformer"])
def test_arrays(name):
    module, shape, _ = ZOO[name]
    X = rows_for(name, N)
    kernel = EmpiricalNTK(module, input_shape=shape)
    expected = oracles.shared_tangent_kernel(module, as_inputs(name, X)).numpy()
    close = {"rtol": 1e-10, "atol": 1e-10 * np.abs(expected).max()}
    for rows in (X, X.numpy(), X.tolist()):
        np.testing.assert_allclose(kernel(rows), expected, **close)
    K, gradient = kernel(X, eval_gradient=True)
    assert K.dtype == np.float64
    assert gradient.shape == (N, N, 0)
    np.testing.assert_allclose(K, expected, **close)
    np.testing.assert_allclose(kernel(X[:3], X), expected[:3], **close)
    np.testing.assert_allclose(kernel.diag(X), np.diag(expected), **close)
    f = module(as_inputs(name, X)).detach().numpy()
    f = f - f.mean(1, keepdims=True) if f.shape[1] > 2 else f[:, -1] - f[:, 0]
    np.testing.assert_allclose(kernel.initial_outputs(X), f, rtol=1e-12, atol=1e-12)
    v = np.linspace(-1, 1, N)
    np.testing.assert_allclose(kernel.matmat(X, X, v), expected @ v, rtol=1e-9, atol=1e-10)


def test_full_output():
    module, _, _ = ZOO["mlp, four outputs"]
    X = rows_for("mlp, four outputs", N)
    kernel = EmpiricalNTK(module, output="full")
    expected = oracles.tangent_kernel(module, X).reshape(4 * N, 4 * N).numpy()
    np.testing.assert_allclose(kernel(X), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(kernel(X[:2], X), expected[:8], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(kernel.diag(X), np.diag(expected), rtol=1e-10)
    V = np.linspace(-1, 1, 8 * N).reshape(-1, 2)
    np.testing.assert_allclose(kernel.matmat(X, X, V), expected @ V, rtol=1e-9, atol=1e-9)
    shared = EmpiricalNTK(module)(X)
    blocks = kernel(X).reshape(N, 4, N, 4)
    np.testing.assert_allclose(np.einsum("ikjk->ij", blocks) / 4, shared, rtol=1e-12)


def test_clone_and_pickle_keep_the_weights():
    module = network(6, 1)
    X = rows_for("mlp, one output", N)
    kernel = EmpiricalNTK(module)
    K = kernel(X)
    copies = [clone(kernel), clone(kernel, safe=False), pickle.loads(pickle.dumps(kernel))]
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    for same in copies:
        assert same.module is not module
        np.testing.assert_array_equal(same(X), K)
    assert not np.allclose(kernel(X), K)
    assert kernel.theta.size == 0
    assert not kernel.is_stationary()
    assert repr(kernel) == "EmpiricalNTK(Sequential(...), output='trace')"


def test_training_the_module_leaves_a_fitted_student_alone(problem):
    X, y, teacher_logits = problem
    module = network(6, 1).train()
    student = LinearizedKDStudent(kernel=EmpiricalNTK(module), init="network", ridge=1e-3)
    student.fit(X[:50], y[:50], teacher_logits=teacher_logits[:50])
    before = student.decision_function(X)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    np.testing.assert_array_equal(student.decision_function(X), before)
    again = pickle.loads(pickle.dumps(student)).decision_function(X)
    np.testing.assert_array_equal(again, before)
    assert module.training


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_student_is_the_module_to_first_order(problem, n_outputs):
    """z(w₀ + ε Δ) − z(w₀) ≈ ε Θ(x, X) a with Δ = J(X)ᵀ a, by central differences."""
    X, y, teacher_logits = problem
    module = network(6, n_outputs)
    kernel = EmpiricalNTK(module)
    student = LinearizedKDStudent(kernel=kernel, init="network", ridge=1e-2)
    student.fit(X[:50], y[:50], teacher_logits=teacher_logits[:50])

    function = kernel.to_torch()
    combination = [[1.0]] if n_outputs == 1 else [[-1.0, 1.0]]
    change = function.pull_back(
        torch.as_tensor(student.X_fit_),
        torch.as_tensor(student.dual_coef_)[:, None],
        torch.tensor(combination, dtype=torch.float64),
    )
    epsilon, logits = 1e-5, []
    for step in (epsilon, -epsilon):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter += step * change[name]
        logits.append(EmpiricalNTK(moved).initial_outputs(X))
    slope = (logits[0] - logits[1]) / (2 * epsilon)
    predicted = student.decision_function(X) - kernel.initial_outputs(X)
    np.testing.assert_allclose(slope, predicted, rtol=1e-6, atol=1e-6 * np.abs(predicted).max())
    squared = sum(float(part.square().sum()) for part in change.values())
    assert student.weight_change_norm_ == pytest.approx(np.sqrt(squared), rel=1e-8)


def test_estimators_of_this_package(problem):
    X, y, teacher_logits = problem
    kernel = EmpiricalNTK(network(6, 1))
    explicit = kernel(X)

    def precomputed(left, right):  # looks entries up by the rows themselves
        index = {row.tobytes(): i for i, row in enumerate(np.ascontiguousarray(X))}
        rows = [index[r.tobytes()] for r in np.ascontiguousarray(left)]
        columns = [index[r.tobytes()] for r in np.ascontiguousarray(right)]
        return explicit[np.ix_(rows, columns)]

    results = []
    for k in (kernel, precomputed):
        student = LinearizedKDStudent(kernel=k, ridge=0.1, init="zero")
        student.fit(X[:60], y[:60], teacher_logits=teacher_logits[:60])
        teacher = NTKTeacher(k, stopping_time=5.0).fit(X[:60], y[:60])
        search = LinearizedKDStudentCV(kernel=k, ridges=[0.1, 1.0], cv=3, init="zero")
        search.fit(X[:60], y[:60], teacher_logits=teacher_logits[:60])
        path = student.prefix_path(X[60:], y=y[60:], teacher_logits=teacher_logits[60:])
        results.append(
            [
                student.decision_function(X[60:]),
                teacher.decision_function(X[60:]),
                search.cv_results_["mean_test_score"],
                path.weight_change_norm,
            ]
        )
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_three_classes():
    X, y = load_iris(return_X_y=True)
    X = scale(X)[::2]
    y = y[::2]
    teacher = NTKTeacher(EmpiricalNTK(network(4, 3)), stopping_time=100.0).fit(X, y)
    assert teacher.score(X, y) > 0.9
    student = LinearizedKDStudent(
        kernel=EmpiricalNTK(network(4, 3)), init="network", soft_ratio=0.5, ridge=1e-2
    )
    logits = teacher.decision_function(X)
    student.fit(X, y, teacher_logits=logits)
    found = student.decision_function(X)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)
    assert student.score(X, y) > 0.9


def test_convolutional_student_on_flat_rows():
    X = rows_for("resnet", 12).numpy()
    module, shape, _ = ZOO["resnet"]
    y = np.arange(12) % 3
    student = LinearizedKDStudent(
        kernel=EmpiricalNTK(module, input_shape=shape), init="network", soft_ratio=0.5
    )
    student.fit(X, y, teacher_logits=2 * np.eye(3)[y])
    np.testing.assert_allclose(student.decision_function(X), student.effective_logits_, atol=1e-6)


def test_gaussian_processes_and_others(problem):
    X, y, _ = problem
    kernel = EmpiricalNTK(network(6, 1))
    regressor = GaussianProcessRegressor(kernel + WhiteKernel(1e-2), optimizer=None).fit(X, y)
    ridge = np.linalg.solve(kernel(X) + 1e-2 * np.eye(len(X)), y)
    np.testing.assert_allclose(regressor.predict(X), kernel(X) @ ridge, rtol=1e-7, atol=1e-8)
    assert GaussianProcessClassifier(kernel).fit(X, y).score(X, y) > 0.9
    assert SVC(kernel=kernel).fit(X, y).score(X, y) > 0.9
    assert KernelPCA(2, kernel=kernel).fit_transform(X).shape == (80, 2)
    search = GridSearchCV(
        LinearizedKDStudent(NTKTeacher(stopping_time=10.0), ridge=0.1),
        {"kernel": [kernel, EmpiricalNTK(network(6, 1, seed=1)), NTK()]},
        cv=2,
    ).fit(X, y)
    assert search.best_score_ > 0.8


def test_a_frame_of_a_module():
    X = rows_for("mlp, one output", N)
    kernel = EmpiricalNTK(network(6, 1))
    frame = TangentFrame(kernel.to_torch(), X)
    np.testing.assert_allclose(frame.lower @ frame.lower.T, kernel(X), rtol=1e-10)


@pytest.mark.parametrize("name", ["mlp, four outputs", "resnet", "transformer"])
def test_fine_tuning_of_some_layers(name):
    """At weights that were trained before, the kernel is that of the parameters still to train."""
    module, shape, _ = ZOO[name]
    module, X = copy.deepcopy(module), rows_for(name, 5)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        module(as_inputs(name, X)).square().sum().backward()
        optimizer.step()
    last = list(module.children())[-1]
    module.requires_grad_(False)
    last.requires_grad_(True)

    outputs = module(as_inputs(name, X))
    trained = list(last.parameters())
    gradients = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, trained, retain_graph=True)])
        for f in outputs.reshape(-1)
    ]
    J = torch.stack(gradients).numpy()
    kernel = EmpiricalNTK(module, input_shape=shape, output="full")
    np.testing.assert_allclose(kernel(X.numpy()), J @ J.T, rtol=1e-9, atol=1e-9)

    y = np.arange(5) % outputs.shape[1]
    z_t = 2 * np.eye(outputs.shape[1])[y]
    student = LinearizedKDStudent(
        kernel=EmpiricalNTK(module, input_shape=shape), init="network", ridge=0.1
    ).fit(X.numpy(), y, teacher_logits=z_t)
    f = outputs.detach().numpy()
    z_0 = f[:, 1] - f[:, 0] if f.shape[1] == 2 else f - f.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(student.initial_logits_, z_0, atol=1e-9)


def test_token_ids():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Transformer(2).double().eval()
    X = rows_for("transformer", N).numpy()
    EmpiricalNTK(module)(X)
    for wrong in (11, -1, 0.5, np.nan):
        X[3, 2] = wrong
        with pytest.raises(ValueError, match=r"X\[3, 2\]=.* not a token id.* 0 to 10"):
            EmpiricalNTK(module)(X)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"module": NTK()}, TypeError, "module=NTK.* is a NTK; it must be an instance"),
        ({"module": nn.Linear}, TypeError, "is a type; it must be an instance"),
        ({"input_shape": 6}, ValueError, r"input_shape=6 must be None or a tuple"),
        ({"input_shape": (2, 0)}, ValueError, r"input_shape=\(2, 0\) must be"),
        ({"output": "sum"}, ValueError, r"output='sum' must be one of \('trace', 'full'\)"),
        ({"dtype": "float16"}, ValueError, r"dtype='float16' must be one of"),
        ({"batch_size": 0}, ValueError, r"batch_size=0 must be 'auto' or a positive integer"),
        ({"batch_size": 1.5}, ValueError, r"batch_size=1\.5 must be"),
        ({"memory_limit": -1}, ValueError, r"memory_limit=-1 must be"),
        ({"device": "nowhere"}, ValueError, r"device='nowhere' is not available"),
    ],
)
def test_parameters_out_of_range(parameters, error, message):
    kernel = EmpiricalNTK(**{"module": mlp(1).double()} | parameters)
    X = rows_for("mlp, one output", 3)
    for call in (kernel, kernel.diag, kernel.initial_outputs):
        with pytest.raises(error, match=message):
            call(X)


def test_bad_calls(problem):
    kernel = EmpiricalNTK(mlp(1).double())
    X = rows_for("mlp, one output", 3)
    with pytest.raises(ValueError, match="eval_gradient=True needs Y=None"):
        kernel(X, X, eval_gradient=True)
    with pytest.raises(ValueError, match="X has 6 features but Y has 5"):
        kernel(X, X[:, :5])
    with pytest.raises(ValueError, match=r"X has shape \(6,\)"):
        kernel(X[0])
    with pytest.raises(ValueError, match=r"V has shape \(2,\); it must have 3 rows"):
        kernel.matmat(X, X, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"on rows of 5 features.*multiplied.*set input_shape"):
        kernel(X[:, :5])
    with pytest.raises(ValueError, match=r"input_shape=\(2, 2\) takes 4 features, but X has 6"):
        EmpiricalNTK(mlp(1).double(), input_shape=(2, 2))(X)


def test_full_output_in_estimators(problem):
    X, y, teacher_logits = problem
    student = LinearizedKDStudent(kernel=EmpiricalNTK(network(6, 2), output="full"))
    with pytest.raises(ValueError, match=r"output='full'.*use output='trace'"):
        student.fit(X, y, teacher_logits=teacher_logits)


def test_memory_is_planned():
    X = np.zeros((200_000, 6))
    with pytest.raises(MemoryBudgetError, match=r"shape \(200000, 200000\).*method matmat"):
        EmpiricalNTK(mlp(1).double(), memory_limit=1e9)(X)
    X = np.random.default_rng(0).normal(size=(10_000, 6))
    with pytest.raises(MemoryBudgetError, match=r"shape \(40000, 40000\).*output='full'"):
        EmpiricalNTK(mlp(4).double(), output="full", memory_limit=1e9)(X)


@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3), size=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_positive_semi_definite_and_symmetric(seed, shift, size):
    X = size * np.random.default_rng(seed).normal(size=(6, 6)) + shift
    kernel = EmpiricalNTK(network(6, 2, seed))
    K = kernel(X)
    np.testing.assert_array_equal(K, K.T)
    assert np.linalg.eigvalsh(K).min() > -1e-12 * np.trace(K)
    np.testing.assert_allclose(kernel(X, X[::-1]), K[:, ::-1], rtol=1e-9, atol=1e-12 * K.max())


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_wide_networks_approach_the_infinite_one(activation):
    """The root mean square error over networks falls by about √16 from width 64 to 1024."""
    X = rows_for("mlp, one output", 5)
    function = {"relu": torch.relu, "erf": torch.erf}[activation]
    expected = NTK(2, activation, weight_std=1.3, bias_std=0.4)(X)
    size = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    errors = []
    for width in (64, 1024):
        squares = [
            np.mean(((EmpiricalNTK(module)(X) - expected) / size) ** 2)
            for module in (
                NTKParametrised([6, width, width, 1], 1.3, 0.4, function, seed)
                for seed in range(10)
            )
        ]
        errors.append(np.sqrt(np.mean(squares)))
    assert errors[1] < 0.06
    assert 2.5 < errors[0] / errors[1] < 6


class OnAnotherDevice(nn.Linear):
    """A layer that says that one of its tensors is on a GPU, until it is moved to the CPU."""

    is_moved = False

    def buffers(self, recurse=True):
        if not self.is_moved:
            yield types.SimpleNamespace(device=torch.device("cuda", 0))

    def to(self, device, *args, **kwargs):
        self.is_moved = torch.device(device).type == "cpu"
        return super().to(device, *args, **kwargs)

    def __getstate__(self):
        return vars(self) | {"pickled_after_moving": self.is_moved}

    def __deepcopy__(self, memo):
        copied = OnAnotherDevice(self.in_features, self.out_features)
        copied.load_state_dict(self.state_dict())
        copied.is_moved = self.is_moved
        return copied


def test_pickles_hold_no_tensors_of_a_gpu():
    kernel = EmpiricalNTK(OnAnotherDevice(2, 1))
    X = np.array([[0.0, 1.0], [2.0, 1.0]])
    for pickled in (kernel, kernel + kernel, kernel.to_torch()):
        loaded = pickle.loads(pickle.dumps(pickled))
        module = getattr(loaded, "k1", loaded).module
        assert module.pickled_after_moving
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kernel))(X), kernel(X))
    assert not kernel.module.is_moved  # the module itself stays where it is
