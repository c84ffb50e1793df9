"""LogitClassifier: one meaning of logits for every classifier, and never NaN."""

import numpy as np
import pytest
import torch

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher
from sklearn_kd._classifier import LogitClassifier
from sklearn_kd.kernels import NTK


class Given(LogitClassifier):
    """A classifier that says what it is given."""

    def __init__(self, classes, logits):
        self.classes_ = np.asarray(classes)
        self.logits = torch.as_tensor(logits, dtype=torch.float64)

    def _check_new_rows(self, X, method):
        return X

    def _logits(self, X):
        return self.logits


ROWS = np.zeros((3, 1))


def test_two_classes():
    model = Given(["no", "yes"], [-1.0, 0.0, 2.0])
    assert model.predict(ROWS).tolist() == ["no", "no", "yes"]
    p = 1 / (1 + np.exp([1.0, 0.0, -2.0]))
    np.testing.assert_allclose(model.predict_proba(ROWS), np.stack([1 - p, p], axis=1))
    np.testing.assert_array_equal(model.decision_function(ROWS), [-1.0, 0.0, 2.0])


def test_three_classes():
    z = np.array([[1.0, -1.0, 0.0], [-3.0, 1.0, 2.0]])
    model = Given([5, 7, 9], z)
    assert model.predict(ROWS[:2]).tolist() == [5, 9]
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(ROWS[:2]), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["decision_function", "predict_proba", "predict"])
def test_nan_is_an_error_and_never_an_answer(method, bad):
    model = Given([0, 1], [1.0, bad, bad])
    with pytest.raises(ValueError, match=r"2 of 3 rows of X are not finite, first of row 1"):
        getattr(model, method)(ROWS)


@pytest.mark.filterwarnings("ignore::sklearn_kd.exceptions.IllConditionedWarning")
@pytest.mark.parametrize("solver", ["cholesky", "refinement", "pcg", "nystrom"])
@pytest.mark.parametrize("scale", [1e-19, 1e-25])
def test_features_below_the_range_of_single_precision(solver, scale):
    rng = np.random.default_rng(0)
    X, y, z = rng.normal(size=(50, 3)), rng.integers(0, 2, 50), rng.normal(size=50) * 3
    student = LinearizedKDStudent(kernel=NTK(bias_std=0), solver=solver, dtype="float32")
    try:
        student.fit(X * scale, y, teacher_logits=z)
    except ValueError:
        assert not hasattr(student, "dual_coef_")
        return
    assert np.isfinite(student.predict_proba(X * scale)).all()


@pytest.mark.parametrize("model", [NTKTeacher(), LinearizedKDStudent(), LinearizedKDStudentCV()])
def test_predictions_of_rows_out_of_range(model):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    given = {} if isinstance(model, NTKTeacher) else {"teacher_logits": X[:, 0]}
    model.fit(X, X[:, 0] > 0, **given)
    with pytest.raises(ValueError, match="not finite"):
        model.predict_proba(np.full((1, 3), 1e200))
