"""LinearizedKDStudent: the closed form, its inputs, its teachers, its errors."""

import pickle

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.svm import NuSVR

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.exceptions import MemoryBudgetError, NotPSDError, SaturatedTeacherWarning
from sklearn_kd.kernels import NTK

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def problem(n_classes, n=80, seed=0):
    """Return distinct rows, noisy labels and teacher logits in the library's gauge."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, 4)), rng.integers(0, n_classes, size=n)
    if n_classes == 2:
        return X, y, rng.normal(scale=3, size=n)
    logits = rng.normal(scale=3, size=(n, n_classes))
    return X, y, logits - logits.mean(axis=1, keepdims=True)


@pytest.fixture(params=[2, 3], ids=["binary", "3 classes"])
def data(request):
    return problem(request.param)


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def test_closed_form(data):
    X, y, z_t = data
    student = LinearizedKDStudent(soft_ratio=0.6, temperature=3.0).fit(X, y, teacher_logits=z_t)
    hard = oracles.one_hot(y, len(np.unique(y)))
    z_eff = oracles.stationary_logits(oracles.soft_labels(z_t, 3.0), hard, 0.6, 3.0)
    gram = NTK()(X)
    np.testing.assert_allclose(student.effective_logits_, z_eff, **CLOSE)
    np.testing.assert_allclose(student.dual_coef_, np.linalg.solve(gram, z_eff), rtol=1e-7)
    X_new = np.random.default_rng(1).normal(size=(9, 4))
    expected = NTK()(X_new, X) @ np.linalg.solve(gram, z_eff)
    np.testing.assert_allclose(student.decision_function(X_new), expected, rtol=1e-7)
    norm = np.sqrt(np.sum(z_eff * np.linalg.solve(gram, z_eff)))
    assert student.weight_change_norm_ == pytest.approx(norm, rel=1e-9)


def test_probabilities_and_classes_follow_from_the_logits(data):
    X, y, z_t = data
    names = np.array(["oak", "ash", "elm"])[y]
    student = LinearizedKDStudent().fit(X, names, teacher_logits=z_t)
    z = student.decision_function(X)
    columns = np.stack([-z / 2, z / 2], axis=1) if z.ndim == 1 else z
    probabilities = np.exp(columns) / np.exp(columns).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(student.predict_proba(X), probabilities, **CLOSE)
    assert (student.predict(X) == np.unique(names)[columns.argmax(axis=1)]).all()
    assert student.classes_.tolist() == sorted(set(names))


def test_soft_labels_alone_reproduce_the_teacher(data):
    X, y, z_t = data
    student = LinearizedKDStudent(soft_ratio=1.0).fit(X, y, teacher_logits=z_t)
    np.testing.assert_allclose(student.effective_logits_, z_t, rtol=0, atol=1e-14)
    np.testing.assert_allclose(student.decision_function(X), z_t, rtol=1e-8, atol=1e-8)


def test_squared_temperature_scaling_is_another_soft_ratio(data):
    X, y, z_t = data
    rho, temperature = 0.4, 3.0
    equivalent = rho * temperature**2 / (rho * temperature**2 + 1 - rho)
    scaled = LinearizedKDStudent(
        soft_ratio=rho, temperature=temperature, temperature_scaling="squared"
    ).fit(X, y, teacher_logits=z_t)
    plain = LinearizedKDStudent(soft_ratio=equivalent, temperature=temperature).fit(
        X, y, teacher_logits=z_t
    )
    np.testing.assert_allclose(scaled.effective_logits_, plain.effective_logits_, **CLOSE)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_repeating_rows_equals_weighting_them_with_conflicting_labels(data, ridge):
    X, y, z_t = data
    counts = np.random.default_rng(1).integers(0, 4, size=len(X))
    settings = {"ridge": ridge, "soft_ratio": 0.6, "temperature": 2.0}
    weighted = LinearizedKDStudent(**settings).fit(X, y, teacher_logits=z_t, sample_weight=counts)
    repeated = LinearizedKDStudent(**settings).fit(
        X.repeat(counts, axis=0), y.repeat(counts), teacher_logits=z_t.repeat(counts, axis=0)
    )
    assert repeated.fit_report_.n_merged_rows == counts.sum() - (counts > 0).sum()
    assert weighted.fit_report_.n_zero_weight_rows == (counts == 0).sum()
    np.testing.assert_allclose(
        repeated.decision_function(X), weighted.decision_function(X), **CLOSE
    )

    # Conflicting labels, and logits, of the copies: the merged row has the mean labels.
    n_classes = len(np.unique(y))
    other_y, other_z = (y + 1) % n_classes, z_t[::-1] / 2
    both = LinearizedKDStudent(**settings).fit(
        np.vstack([X, X]), np.hstack([y, other_y]), teacher_logits=np.concatenate([z_t, other_z])
    )
    hard = (oracles.one_hot(y, n_classes) + oracles.one_hot(other_y, n_classes)) / 2
    soft = (oracles.soft_labels(z_t, 2.0) + oracles.soft_labels(other_z, 2.0)) / 2
    z_eff = oracles.stationary_logits(soft, hard, 0.6, 2.0)
    np.testing.assert_allclose(both.effective_logits_, z_eff, rtol=1e-8, atol=1e-9)
    gram = NTK()(X) + ridge / 2 * np.eye(len(X))
    np.testing.assert_allclose(both.dual_coef_, np.linalg.solve(gram, z_eff), rtol=1e-6, atol=1e-9)


def test_every_row_repeated_gives_the_same_student(data):
    X, y, z_t = data
    once = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    twice = LinearizedKDStudent().fit(
        np.vstack([X, X]), np.r_[y, y], teacher_logits=np.concatenate([z_t, z_t])
    )
    np.testing.assert_allclose(twice.dual_coef_, once.dual_coef_, **CLOSE)
    assert twice.jitter_ == once.jitter_ == 0


def test_ridge_and_weights_are_those_of_kernel_ridge(data):
    X, y, z_t = data
    weights = np.random.default_rng(2).uniform(0.2, 3, size=len(X))
    student = LinearizedKDStudent(ridge=0.7).fit(X, y, teacher_logits=z_t, sample_weight=weights)
    ridge = KernelRidge(kernel="precomputed", alpha=0.7).fit(
        NTK()(X), student.effective_logits_, sample_weight=weights
    )
    np.testing.assert_allclose(student.dual_coef_, ridge.dual_coef_, **CLOSE)


@pytest.mark.parametrize(
    "kernel", [Matern(nu=0.5), RBF(0.3) + NTK(depth=1), lambda A, B: NTK()(A, B)]
)
def test_other_kernels(data, kernel):
    X, y, z_t = data
    student = LinearizedKDStudent(kernel=kernel).fit(X, y, teacher_logits=z_t)
    gram = kernel(X, X)
    np.testing.assert_allclose(gram @ student.dual_coef_, student.effective_logits_, rtol=1e-6)


# Teachers


def test_unfitted_teacher_is_cross_fitted_then_refitted(cancer):
    X, y = cancer
    teacher = LogisticRegression(C=0.1)
    student = LinearizedKDStudent(teacher, cv=4).fit(X, y)
    expected = cross_val_predict(teacher, X, y, cv=4, method="decision_function")
    np.testing.assert_allclose(student.teacher_logits_, expected, **CLOSE)
    np.testing.assert_allclose(student.teacher_.coef_, clone(teacher).fit(X, y).coef_, **CLOSE)
    assert not hasattr(teacher, "coef_")


@pytest.mark.parametrize("how", ["frozen", "prefit"])
def test_fitted_teacher_is_used_as_it_is(cancer, how):
    X, y = cancer
    teacher = LogisticRegression().fit(X[:100], y[:100])
    student = (
        LinearizedKDStudent(FrozenEstimator(teacher))
        if how == "frozen"
        else LinearizedKDStudent(teacher, cv="prefit")
    ).fit(X[100:], y[100:])
    np.testing.assert_allclose(student.teacher_logits_, teacher.decision_function(X[100:]), **CLOSE)
    np.testing.assert_allclose(
        student.teacher_decision_function(X[:9]), teacher.decision_function(X[:9]), **CLOSE
    )


def test_default_teacher_is_a_wide_network_with_the_same_kernel(cancer):
    X, y = cancer
    student = LinearizedKDStudent(kernel=NTK(depth=1), cv=3).fit(X[:150], y[:150])
    assert isinstance(student.teacher_, NTKTeacher)
    assert student.teacher_.kernel_ == NTK(depth=1)


@pytest.mark.parametrize("load", [load_breast_cancer, load_digits])
def test_saturated_forest_as_teacher(load):
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)[:500]
    forest = RandomForestClassifier(50, random_state=0).fit(X, y[:500])
    student = LinearizedKDStudent(FrozenEstimator(forest), soft_ratio=0.5)
    with pytest.warns(SaturatedTeacherWarning, match=r"probability of 0 on \d+ of 300 rows"):
        student.fit(X[:300], y[:300])
    probabilities = forest.predict_proba(X[:300])
    assert student.fit_report_.n_clipped_teacher_rows == (probabilities == 0).any(axis=1).sum() > 0
    logs = np.log(np.where(probabilities == 0, 1 / 300, probabilities))
    expected = (
        logs[:, 1] - logs[:, 0]
        if load is load_breast_cancer
        else (logs - logs.mean(axis=1, keepdims=True))
    )
    np.testing.assert_allclose(student.teacher_logits_, expected, **CLOSE)
    assert np.isfinite(student.decision_function(X)).all()
    assert student.score(X[300:], y[300:500]) > 0.8


def test_data_frames_reach_the_teacher_as_they_are(cancer):
    X, y = cancer
    frame = pd.DataFrame(X, columns=[f"feature {i}" for i in range(X.shape[1])])
    labels = pd.Series(np.where(y, "benign", "malignant"))
    teacher = LogisticRegression().fit(frame, labels)
    student = LinearizedKDStudent(FrozenEstimator(teacher)).fit(frame, labels)
    assert student.feature_names_in_.tolist() == frame.columns.tolist()
    assert set(student.predict(frame)) == {"benign", "malignant"}
    crossed = LinearizedKDStudent(LogisticRegression(), cv=3).fit(frame, labels)
    assert crossed.teacher_.feature_names_in_.tolist() == frame.columns.tolist()


def test_two_columns_of_logits_for_two_classes():
    X, y, z_t = problem(2)
    columns = np.stack([-0.25 * z_t + 1, 0.75 * z_t + 1], axis=1)
    actual = LinearizedKDStudent().fit(X, y, teacher_logits=columns)
    np.testing.assert_allclose(actual.teacher_logits_, z_t, rtol=1e-12, atol=1e-12)


def test_a_column_of_log_odds_is_a_vector():
    X, y, z_t = problem(2)
    column = LinearizedKDStudent().fit(X, y, teacher_logits=z_t[:, None])
    np.testing.assert_array_equal(column.teacher_logits_, z_t)


# State


def test_pickle_drops_the_factor_and_predicts_the_same(cancer):
    X, y = cancer
    student = LinearizedKDStudent(LogisticRegression()).fit(X, y)
    frame = student.tangent_frame()
    dump = pickle.dumps(student)
    assert len(dump) < 0.3 * len(X) ** 2 * 8
    loaded = pickle.loads(dump)
    np.testing.assert_array_equal(loaded.decision_function(X), student.decision_function(X))
    assert torch.equal(loaded.tangent_frame().lower, frame.lower)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_student_fitted_on_a_gpu_loads_where_there_is_none(cancer):
    X, y = cancer
    student = LinearizedKDStudent(LogisticRegression()).fit(X, y)
    expected = student.decision_function(X)
    # What a fit on a GPU leaves behind: numpy state, and the device it was asked for.
    loaded = pickle.loads(pickle.dumps(student.set_params(device="cuda")))
    with pytest.raises(ValueError, match=r"device='cuda' is not available here .* device='cpu'"):
        loaded.decision_function(X)
    np.testing.assert_array_equal(loaded.set_params(device="auto").decision_function(X), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_agrees_with_cpu_and_its_pickle_loads_there(data):
    X, y, z_t = data
    cpu = LinearizedKDStudent(device="cpu").fit(X, y, teacher_logits=z_t)
    gpu = LinearizedKDStudent(device="cuda").fit(X, y, teacher_logits=z_t)
    np.testing.assert_allclose(gpu.decision_function(X), cpu.decision_function(X), **CLOSE)
    loaded = pickle.loads(pickle.dumps(gpu)).set_params(device="cpu")
    np.testing.assert_allclose(loaded.decision_function(X), cpu.decision_function(X), **CLOSE)


def test_clone_is_unfitted_with_equal_parameters(cancer):
    X, y = cancer
    student = LinearizedKDStudent(FrozenEstimator(LogisticRegression().fit(X, y)), ridge=0.1)
    copy = clone(student.fit(X, y))
    assert not hasattr(copy, "dual_coef_")
    assert copy.teacher is student.teacher
    assert copy.get_params()["ridge"] == 0.1


def test_predictions_and_frame_are_those_of_the_fit(data):
    X, y, z_t = data
    student = LinearizedKDStudent(kernel=NTK(depth=1), ridge=0.1).fit(X, y, teacher_logits=z_t)
    logits, lower = student.decision_function(X), student.tangent_frame().lower
    changed = pickle.loads(pickle.dumps(student)).set_params(kernel=NTK(depth=5), ridge=2.0)
    np.testing.assert_array_equal(changed.decision_function(X), logits)
    assert torch.equal(changed.tangent_frame().lower, lower)


def test_input_dtype_does_not_lower_the_working_precision(data):
    X, y, z_t = data
    X = X.astype(np.float32)
    auto = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    assert auto.dual_coef_.dtype == np.float64
    assert auto.fit_report_.dtype == "float64"
    np.testing.assert_array_equal(
        auto.dual_coef_,
        LinearizedKDStudent().fit(X.astype(float), y, teacher_logits=z_t).dual_coef_,
    )
    single = LinearizedKDStudent(dtype="float32").fit(X, y, teacher_logits=z_t)
    assert single.dual_coef_.dtype == np.float32
    np.testing.assert_allclose(single.predict_proba(X), auto.predict_proba(X), atol=0.02)


# Errors: typed, quick, and nothing half fitted


def indefinite(A, B):
    return NTK()(A, B) - 9.0


X2, Y2, Z2 = problem(2)
X3, Y3, Z3 = problem(3)
NAN, INF = X2.copy(), X2.copy()
NAN[3, 1], INF[3, 1] = np.nan, np.inf
OTHER_CLASSES = LogisticRegression().fit(X2, Y2 + 5)

BAD_INPUT = {
    "NaN": ({}, (NAN, Y2, Z2), ValueError, "NaN"),
    "inf": ({}, (INF, Y2, Z2), ValueError, "infinity"),
    "one class": ({}, (X2, np.ones(80), Z2), ValueError, r"only one class, \[1\.0\]"),
    "one row": ({}, (X2[:1], Y2[:1], Z2[:1]), ValueError, "minimum of 2 is required"),
    "soft_ratio=0": ({"soft_ratio": 0.0}, (X2, Y2, Z2), ValueError, "soft_ratio"),
    "soft_ratio>1": ({"soft_ratio": 1.1}, (X2, Y2, Z2), ValueError, "soft_ratio"),
    "temperature=0": ({"temperature": 0.0}, (X2, Y2, Z2), ValueError, "temperature"),
    "temperature<0": ({"temperature": -1.0}, (X2, Y2, Z2), ValueError, "temperature"),
    "ridge<0": ({"ridge": -1.0}, (X2, Y2, Z2), ValueError, "ridge"),
    "device": ({"device": "abacus"}, (X2, Y2, Z2), ValueError, "device='abacus'"),
    "regression": ({}, (X2, X2[:, 0], Z2), ValueError, "Unknown label type"),
    "logits too short": ({}, (X2, Y2, Z2[:-1]), ValueError, r"teacher_logits has shape \(79,\)"),
    "logits of three": ({}, (X2, Y2, Z3), ValueError, r"need \(80,\) or \(80, 2\)"),
    "logits of two": ({}, (X3, Y3, Z2), ValueError, r"need \(80, 3\)"),
    "infinite logits": (
        {},
        (X2, Y2, np.full(80, np.inf)),
        ValueError,
        "teacher_logits must be finite, but row 0",
    ),
    "negative weight": ({}, (X2, Y2, Z2, -np.ones(80)), ValueError, "(?i)negative"),
    "zero weights": ({}, (X2, Y2, Z2, np.zeros(80)), ValueError, "at least one non-zero"),
    "other classes": (
        {"teacher": FrozenEstimator(OTHER_CLASSES)},
        (X2, Y2),
        ValueError,
        r"y holds the class 0, which is not among those of the fitted teacher.*\[5, 6\]",
    ),
    "unfitted frozen": (
        {"teacher": FrozenEstimator(LogisticRegression())},
        (X2, Y2),
        NotFittedError,
        "FrozenEstimator instance is not fitted",
    ),
    "prefit without teacher": ({"cv": "prefit"}, (X2, Y2), ValueError, "cv='prefit'"),
    "teacher and logits": (
        {"teacher": LogisticRegression()},
        (X2, Y2, Z2),
        ValueError,
        "teacher_logits was passed",
    ),
    "regressor as teacher": ({"teacher": NuSVR()}, (X2, Y2), TypeError, "NuSVR"),
    "incomplete cv": (
        {"teacher": LogisticRegression(), "cv": [(np.arange(40), np.arange(40, 80))]},
        (X2, Y2),
        ValueError,
        "row 0 in no test fold",
    ),
    "fold without class": (
        {"teacher": LogisticRegression(), "cv": KFold(2)},
        (X2, np.arange(80) // 40),
        ValueError,
        "without class",
    ),
    "indefinite kernel": ({"kernel": indefinite}, (X2, Y2, Z2), NotPSDError, "smallest eigenvalue"),
    "kernel=number": ({"kernel": 3}, (X2, Y2, Z2), ValueError, "kernel"),
    "memory": ({"memory_limit": 1e4}, (X2, Y2, Z2), MemoryBudgetError, "n=80 distinct rows"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.parametrize("fitted", [False, True], ids=["unfitted", "fitted"])
def test_bad_input_is_a_clear_error_and_leaves_no_half_fitted_state(case, fitted):
    parameters, arguments, error, message = BAD_INPUT[case]
    student = LinearizedKDStudent()
    if fitted:
        student.fit(X2, Y2, teacher_logits=Z2)
    student.set_params(**parameters)
    before = vars(student).copy()
    named = dict(zip(("teacher_logits", "sample_weight"), arguments[2:], strict=False))
    with pytest.raises(error, match=message):
        student.fit(*arguments[:2], **named)
    before.pop("_frame", None)
    after = vars(student)
    assert after.keys() - {"_frame"} == before.keys()
    assert all(after[key] is before[key] for key in before)


def test_a_million_distinct_rows_do_not_fit_and_say_so_at_once():
    X = np.arange(1e6).reshape(-1, 1)
    student = LinearizedKDStudent(LogisticRegression())
    with pytest.raises(MemoryBudgetError, match=r"n=1000000 .*'cholesky' needs 7.2.. TiB.*nystrom"):
        student.fit(X, np.arange(10**6) % 2)


def test_prediction_errors(data):
    X, y, z_t = data
    with pytest.raises(NotFittedError):
        LinearizedKDStudent().predict(X)
    student = LinearizedKDStudent().fit(X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="3 features"):
        student.predict(X[:, :3])
    with pytest.raises(ValueError, match="has no teacher to ask"):
        student.teacher_decision_function(X)
    with pytest.raises(ValueError, match=r"label \[7\] \(row 2\)"):
        student.effective_decision_function(X[:3], [0, 1, 7], z_t[:3])


@pytest.mark.parametrize("weight", [1e-150, 1e150])
def test_weights_beyond_single_precision_are_named(weight):
    student = LinearizedKDStudent(dtype="float32")
    weights = np.r_[np.ones(79), weight]
    with pytest.raises(ValueError, match=r"sample_weight holds .* range of float32"):
        student.fit(X2, Y2, teacher_logits=Z2, sample_weight=weights)
    student.set_params(dtype="float64").fit(X2, Y2, teacher_logits=Z2, sample_weight=weights)
    assert np.isfinite(student.dual_coef_).all()
