"""Kernels with noise: students and teachers are those of Gaussian processes, and of a ridge."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, CompoundKernel, DotProduct, WhiteKernel

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd.inspection import AngleDistributionDisplay, TransferRiskDisplay
from sklearn_kd.kernels import NTK
from sklearn_kd.solvers import PCG, Nystrom, Refinement

SOLVERS = ["cholesky", Refinement(tol=1e-12), PCG(tol=1e-12, random_state=0), Nystrom(1000)]
KERNELS = [RBF() + WhiteKernel(0.5), NTK(depth=1) + WhiteKernel(0.1), (RBF() + WhiteKernel()) ** 2]
RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(30, 3)), RNG.normal(size=(7, 3))
Y, Z = (X[:, 0] > 0).astype(int), 2 * X[:, 0]
REPEATED = np.r_[:30, :5, :5, 3]  # rows 0 to 4 three times, row 3 a fourth time


def process(kernel, rows=slice(None), targets=Z):
    return GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(X[rows], targets[rows])


def student_of(kernel, rows=slice(None), sample_weight=None, **params):
    student = LinearizedKDStudent(kernel=kernel, soft_ratio=1.0, **params)
    return student.fit(X[rows], Y[rows], sample_weight, teacher_logits=Z[rows])


@pytest.mark.parametrize("rows", [slice(None), REPEATED], ids=["distinct", "copies"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_student_is_the_gaussian_process(kernel, solver, rows):
    expected = process(kernel, rows).predict(X_NEW)
    actual = student_of(kernel, rows, solver=solver).decision_function(X_NEW)
    np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_weights_are_copies(solver):
    weights = np.bincount(REPEATED, minlength=30).astype(float)
    weights[7] = 0
    rows = np.delete(REPEATED, 7)
    expected = process(KERNELS[0], rows).predict(X_NEW)
    weighted = student_of(KERNELS[0], sample_weight=weights, solver=solver)
    np.testing.assert_allclose(weighted.decision_function(X_NEW), expected, atol=1e-10)


def test_noise_is_a_ridge_in_all_that_a_student_reports():
    noisy = student_of(RBF() + WhiteKernel(0.5), REPEATED, ridge=0.25)
    ridged = student_of(RBF(), REPEATED, ridge=0.75)
    assert (noisy.fit_report_.ridge, noisy.fit_report_.noise) == (0.25, 0.5)
    assert ridged.fit_report_.noise == 0
    assert noisy.weight_change_norm_ == pytest.approx(ridged.weight_change_norm_, rel=1e-12)
    np.testing.assert_allclose(noisy.dual_coef_, ridged.dual_coef_, rtol=1e-10)
    options = {"n_permutations": 2, "random_state": 0}
    paths = [
        one.prefix_path(X_NEW, teacher_logits=X_NEW[:, 0], **options) for one in (noisy, ridged)
    ]
    for name, values in paths[0].items():
        np.testing.assert_allclose(values, paths[1][name], rtol=1e-8, err_msg=name)


def test_new_rows_have_the_variance_of_the_gaussian_process():
    kernel = RBF() + WhiteKernel(0.5)
    frame = pickle.loads(pickle.dumps(student_of(kernel, REPEATED))).tangent_frame()
    _, v = frame.features(torch.from_numpy(X_NEW))
    _, expected = process(kernel, REPEATED).predict(X_NEW, return_std=True)
    np.testing.assert_allclose(frame.new_directions(v).sqrt(), expected, rtol=1e-10)


def test_prefixes_are_gaussian_processes_of_the_first_rows():
    kernel = RBF() + WhiteKernel(0.5)
    predictions = (
        student_of(kernel)
        .tangent_frame()
        .prefix_predictions(torch.from_numpy(X_NEW), torch.from_numpy(Z), [1, 10, 30])
    )
    for size, actual in zip([1, 10, 30], predictions, strict=True):
        expected = process(kernel, slice(size)).predict(X_NEW)
        np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_leave_one_out_is_a_refit():
    kernel = RBF() + WhiteKernel(0.5)
    actual = student_of(kernel).tangent_frame().loo(torch.from_numpy(Z))
    for row in (0, 17):
        others = np.delete(np.arange(30), row)
        expected = process(kernel, others).predict(X[[row]])
        np.testing.assert_allclose(actual[[row]], expected, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": "neg_log_loss"},
        {"cv": 3, "scoring": "neg_log_loss"},
        {"cv": 3, "ridges": [0.0, 1.0]},
        {"cv": 3, "solver": PCG(tol=1e-12, random_state=0), "scoring": "neg_log_loss"},
        {"solver": Nystrom(20, random_state=0), "scoring": "neg_log_loss"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rows", "weighted"),
    [(np.arange(30), False), (np.arange(30), True), (REPEATED, False)],
    ids=["distinct", "weighted", "copies"],
)
def test_searches_take_the_noise_for_a_ridge(options, rows, weighted):
    ridges = np.asarray(options.get("ridges", [0.0]))
    weights = RNG.integers(1, 4, size=len(rows)).astype(float) if weighted else None

    def search(kernel, ridges):
        grid = {"soft_ratios": [0.3, 1.0], "temperatures": [2.0], "ridges": ridges}
        found = LinearizedKDStudentCV(kernel=kernel, **(options | grid))
        return found.fit(X[rows], Y[rows], weights, teacher_logits=Z[rows])

    noisy, ridged = search(RBF() + WhiteKernel(0.5), ridges), search(RBF(), ridges + 0.5)
    for name in noisy.cv_results_:
        if "test" in name and "rank" not in name:
            np.testing.assert_allclose(
                noisy.cv_results_[name], ridged.cv_results_[name], rtol=1e-8, atol=1e-12
            )
    np.testing.assert_allclose(
        noisy.decision_function(X_NEW), ridged.decision_function(X_NEW), rtol=1e-8
    )


@pytest.mark.parametrize("rows", [slice(None), REPEATED], ids=["distinct", "copies"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_teacher_of_the_squared_error_is_the_gaussian_process(kernel, rows):
    expected = process(kernel, rows, np.where(Y == 1, 1.0, -1.0)).predict(X_NEW)
    minimum = NTKTeacher(kernel, loss="squared_error", ridge=0.0).fit(X[rows], Y[rows])
    flow = NTKTeacher(kernel, loss="squared_error", stopping_time=1e9).fit(X[rows], Y[rows])
    np.testing.assert_allclose(minimum.decision_function(X_NEW), expected, atol=1e-10)
    np.testing.assert_allclose(flow.decision_function(X_NEW), expected, atol=1e-5)
    assert flow.weight_change_norm_ == pytest.approx(minimum.weight_change_norm_, rel=1e-4)


@pytest.mark.parametrize("params", [{}, {"stopping_time": 20.0}], ids=["minimum", "flow"])
def test_noise_reaches_the_log_loss_of_copies_as_of_rows_told_apart(params):
    # A last feature that only the noise's axis sees tells the copies apart: an explicit kernel
    # K(X, Y) of distinct rows, with the noise where the numbers of the rows are the same.
    n = len(REPEATED)
    numbered = np.c_[X[REPEATED], np.arange(n)]
    new = np.c_[X_NEW, np.full(len(X_NEW), -1)]

    def explicit(A, B):
        return RBF()(A[:, :3], B[:, :3]) + 0.5 * (A[:, 3:] == B[:, 3])

    expected = NTKTeacher(explicit, **params).fit(numbered, Y[REPEATED])
    actual = NTKTeacher(RBF() + WhiteKernel(0.5), **params).fit(X[REPEATED], Y[REPEATED])
    assert actual.fit_report_.n_merged_rows == n - 30
    np.testing.assert_allclose(
        actual.decision_function(X_NEW), expected.decision_function(new), atol=1e-6
    )


def test_what_cannot_be_a_kernel_with_noise_is_refused_before_anything_is_set():
    student = LinearizedKDStudent(kernel=DotProduct() * WhiteKernel(), soft_ratio=1.0)
    with pytest.raises(ValueError, match="differs from row to row"):
        student.fit(X, Y, teacher_logits=Z)
    assert not hasattr(student, "dual_coef_")
    with pytest.raises(ValueError, match=r"CompoundKernel.*shape \(30, 30, 2\)"):
        student_of(CompoundKernel([RBF(), RBF(2.0) + WhiteKernel()]))


def test_displays_know_the_noise():
    noisy, ridged = student_of(RBF() + WhiteKernel(0.5)), student_of(RBF(), ridge=0.5)
    angles = [
        AngleDistributionDisplay.from_estimator(one).feature_angles for one in (noisy, ridged)
    ]
    np.testing.assert_allclose(*angles, rtol=1e-10)
    with pytest.raises(ValueError, match=r"oracle_norm .* noise=0\.5.*without WhiteKernel"):
        TransferRiskDisplay.from_estimator(
            noisy, X_NEW, teacher_logits=X_NEW[:, 0], oracle_norm=9.0
        )
