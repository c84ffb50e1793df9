"""The NTK as a scikit-learn Gaussian-process kernel."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.preprocessing import scale
from sklearn.svm import SVC

from sklearn_kd.kernels import NTK


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(15, 4))


def differences(kernel, X, step=1e-5):
    theta = kernel.theta
    columns = []
    for direction in np.eye(len(theta)) * step:
        up, down = (
            kernel.clone_with_theta(theta + direction),
            kernel.clone_with_theta(theta - direction),
        )
        columns.append((up(X) - down(X)) / (2 * step))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize(
    "kernel",
    [
        NTK(2),
        NTK(2, "erf", weight_std=1.5, bias_std=0.2, kind="nngp"),
        NTK(1, bias_std=0.0),
        NTK(1, weight_std_bounds="fixed"),
        NTK(1, bias_std_bounds="fixed"),
        ConstantKernel(2.0) * NTK(3, "gelu") + WhiteKernel(0.1),
        NTK(2) * RBF(0.9) + NTK(1, "leaky_relu") ** 2,
    ],
    ids=str,
)
def test_kernel_protocol(kernel, X):
    K, gradient = kernel(X, eval_gradient=True)
    assert K.dtype == np.float64
    assert gradient.shape == (15, 15, kernel.n_dims)
    np.testing.assert_allclose(kernel(X, X.copy()), kernel(X, X), rtol=1e-12)
    np.testing.assert_allclose(kernel.diag(X), np.diag(K), rtol=1e-13)
    np.testing.assert_allclose(gradient, differences(kernel, X), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(clone(kernel)(X), K)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kernel))(X), K)
    assert clone(kernel) == kernel
    assert kernel.bounds.shape == (kernel.n_dims, 2)
    assert not kernel.is_stationary()
    assert kernel.requires_vector_input


def test_theta_and_parameters():
    kernel = NTK(weight_std=2.0, bias_std=0.5)
    np.testing.assert_allclose(kernel.theta, np.log([0.5, 2.0]))
    np.testing.assert_allclose(np.exp(kernel.bounds), [[1e-2, 1e2], [1e-2, 1e2]])
    moved = kernel.clone_with_theta(np.log([0.3, 1.5]))
    assert (moved.bias_std, moved.weight_std) == pytest.approx((0.3, 1.5))
    assert kernel.set_params(depth=7).depth == 7
    assert repr(kernel) == (
        "NTK(depth=7, activation='relu', weight_std=2, bias_std=0.5, kind='ntk')"
    )


def test_zero_bias_is_fixed():
    kernel = NTK(bias_std=0.0)
    np.testing.assert_allclose(kernel.theta, [0.0])
    assert kernel.clone_with_theta([0.1]).bias_std == 0.0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"depth": 0}, r"depth=0 must be an integer of at least 1"),
        ({"depth": 1.5}, r"depth=1\.5 must be an integer"),
        ({"activation": "tanh"}, r"activation='tanh' must be one of \('relu'"),
        ({"kind": "cntk"}, r"kind='cntk' must be one of"),
        ({"weight_std": -1.0}, r"weight_std=-1\.0 must be a finite number"),
        ({"weight_std": 0.0}, r"weight_std=0 makes the kernel constant"),
        ({"bias_std": np.nan}, r"bias_std=nan must be a finite number"),
        ({"bias_std": "1"}, r"bias_std='1' must be a finite number"),
        ({"weight_std": 1e300}, r"weight_std=1e\+300 must lie between 1e-50 and 1e\+50"),
        ({"weight_std": 1e-300}, r"weight_std=1e-300 must lie between .* Rescale the rows"),
        ({"bias_std": 1e-300}, r"bias_std=1e-300 must lie between 1e-50 and 1e\+50"),
    ],
)
def test_parameters_out_of_range(params, message, X):
    kernel = NTK(**params)
    for call in (kernel, kernel.diag):
        with pytest.raises(ValueError, match=message):
            call(X)


def test_bad_calls(X):
    with pytest.raises(ValueError, match="eval_gradient=True needs Y=None"):
        NTK()(X, X, eval_gradient=True)
    with pytest.raises(ValueError, match="X has 4 features but Y has 3"):
        NTK()(X, X[:, :3])
    with pytest.raises(ValueError, match=r"X has shape \(15,\)"):
        NTK()(X[:, 0])
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"rows \[3\]"):
        NTK()(X)


def test_float32_rows_give_float64(X):
    np.testing.assert_array_equal(NTK()(X.astype("f4")), NTK()(X.astype("f4").astype("f8")))


def test_regressor_with_search():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:150], scale(y)[:150]
    kernel = NTK(2, weight_std=0.5, bias_std=0.5) + WhiteKernel(1.0)
    start = GaussianProcessRegressor(kernel, optimizer=None).fit(X, y)
    model = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0).fit(X, y)
    assert model.log_marginal_likelihood_value_ > start.log_marginal_likelihood_value_ + 1
    assert model.kernel_.k1.weight_std != 0.5
    mean, std = model.predict(X[:5], return_std=True)
    assert mean.shape == std.shape == (5,)
    assert np.all(std > 0)
    assert model.score(X, y) > 0.4


# A bound of the search may well be the best there is; that is not what is tested.
@pytest.mark.filterwarnings("ignore:The optimal value found:sklearn.exceptions.ConvergenceWarning")
def test_classifier_with_search():
    X, y = load_iris(return_X_y=True)
    X, y = scale(X)[::2], y[::2]
    model = GaussianProcessClassifier(
        ConstantKernel(2.0) * NTK(2), n_restarts_optimizer=1, random_state=0
    ).fit(X, y)
    assert model.score(X, y) > 0.95
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)


def test_support_vector_machine():
    X, y = load_breast_cancer(return_X_y=True)
    X, y = scale(X)[:200], y[:200]
    assert cross_val_score(SVC(kernel=NTK()), X, y, cv=3).mean() > 0.92
    search = GridSearchCV(SVC(kernel=NTK()), {"kernel__depth": [1, 3]}, cv=3).fit(X, y)
    assert search.best_params_["kernel__depth"] in (1, 3)


def test_kernel_pca():
    X = scale(load_iris().data)
    kernel = NTK(2)
    transformed = KernelPCA(n_components=3, kernel=kernel).fit_transform(X)
    centred = kernel(X) - kernel(X).mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    largest = np.linalg.eigvalsh(centred)[::-1][:3]
    np.testing.assert_allclose((transformed**2).sum(axis=0), largest, rtol=1e-8)


def test_import_pulls_in_no_plotting():
    script = "import sys, sklearn_kd.kernels; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("depth", [1, 1000])
@pytest.mark.parametrize("bias_std", [0.0, 1e-50, 1e10, 1e50])
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_extreme_parameters_give_finite_values_or_a_clear_error(activation, bias_std, depth):
    rows = np.array([[1.0, -2.0], [-1.0, 2.0], [0.0, 0.0], [0.3, 0.1]])
    for weight_std in (1.0,) if depth > 1 else (1e-50, 1.0, 1e50):
        kernel = NTK(depth, activation, weight_std, bias_std)
        results, message = (), "weight_std"
        try:
            results = kernel(rows), kernel(rows, rows), kernel.diag(rows)
        except ValueError as error:
            message = str(error)
        assert "weight_std" in message or "activation='erf' is a step" in message
        assert all(np.isfinite(values).all() for values in results)
