"""scikit-learn's own estimator checks."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from sklearn import config_context
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_kd import (
    DistillationPlan,
    LinearizedKDStudent,
    LinearizedKDStudentCV,
    NTKTeacher,
    StudentPipeline,
)
from sklearn_kd.solvers import PCG, Nystrom, Refinement


@pytest.fixture(autouse=True)
def only_devices_that_answer(monkeypatch):
    """Let scikit-learn skip a device where none answers.

    It asks whether torch was built for CUDA, and PyPI's torch for Linux is, also on a machine
    without a GPU.
    """
    monkeypatch.setattr(torch.backends.cuda, "is_built", torch.cuda.is_available)
    monkeypatch.setattr(torch.backends.mps, "is_built", torch.backends.mps.is_available)


# The check gives removed and repeated rows the folds of weighted ones, but only to a parameter
# ``cv`` of the estimator itself.
UNEQUAL_FOLDS = {
    f"check_sample_weight_equivalence_on_{kind}_data": "the folds are of the student inside"
    for kind in ("dense", "sparse")
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        NTKTeacher(),
        NTKTeacher(loss="squared_error"),
        NTKTeacher(stopping_time=[1.0, 10.0]),
        LinearizedKDStudent(),
        LinearizedKDStudent(LogisticRegression(max_iter=1000), soft_ratio=0.5, ridge=0.1, cv=3),
        LinearizedKDStudent(
            [LogisticRegression(max_iter=1000), LogisticRegression(C=0.1, max_iter=1000)], cv=3
        ),
        LinearizedKDStudent(solver=Nystrom(n_landmarks=20, random_state=0)),
        LinearizedKDStudent(solver=PCG(tol=1e-10), ridge=0.1),
        LinearizedKDStudent(solver=Refinement(tol=1e-10), ridge=0.1),
        StudentPipeline(
            Normalizer(), LinearizedKDStudent(LogisticRegression(max_iter=1000), ridge=0.1, cv=3)
        ),
        LinearizedKDStudentCV(),
        LinearizedKDStudentCV(LogisticRegression(max_iter=1000), ridges=[0.0, 0.1], cv=3),
        LinearizedKDStudentCV(solver=PCG(tol=1e-10), ridges=[0.1], cv=3),
        LinearizedKDStudentCV(soft_ratios=[0.5, 1.0], stopping_times=[1.0, None], cv=3),
        DistillationPlan(soft_ratios=[0.5, 1.0], temperatures=[2.0], n_orders=2),
    ],
    expected_failed_checks=lambda estimator: (
        UNEQUAL_FOLDS if isinstance(estimator, StudentPipeline) else {}
    ),
)
def test_sklearn_compatibility(estimator, check):
    check(estimator)


@pytest.mark.skipif("SCIPY_ARRAY_API" not in os.environ, reason="scipy's array API is off")
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "estimator", [NTKTeacher(), LinearizedKDStudent()], ids=["teacher", "student"]
)
def test_torch_tensors_through_fit_and_predict(estimator, n_classes):
    """With array API dispatch on, tensors in means tensors out, with the values of numpy."""
    X, y = make_classification(n_samples=60, n_classes=n_classes, n_informative=5, random_state=0)
    expected = estimator.fit(X, y)
    outputs = {
        method: getattr(expected, method)(X)
        for method in ("decision_function", "predict_proba", "predict")
    }
    with config_context(array_api_dispatch=True):
        estimator.fit(torch.as_tensor(X), torch.as_tensor(y))
        for method, output in outputs.items():
            actual = getattr(estimator, method)(torch.as_tensor(X))
            assert isinstance(actual, torch.Tensor)
            torch.testing.assert_close(actual, torch.as_tensor(output))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.skipif("SCIPY_ARRAY_API" not in os.environ, reason="scipy's array API is off")
def test_checks_pass_with_a_torch_that_was_built_for_cuda():
    # in a process of its own: as it would be on a stranger's machine, before anything is imported
    script = f"""
    import sys
    import pytest
    import torch
    torch.backends.cuda.is_built = torch.backends.mps.is_built = lambda: True
    checks = "(cuda or mps) and NTKTeacher and not through"
    sys.exit(pytest.main([{__file__!r}, "-k", checks, "-p", "no:cacheprovider", "-rs", "-q"]))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert "PyTorch test requires cuda, which is not available" in run.stdout
