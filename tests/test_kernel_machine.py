"""Predictions of kernel machines, in memory and block by block."""

import copy

import numpy as np
import pytest

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd._kernel_machine import TangentKernelClassifier
from sklearn_kd.rows._streams import RowStream

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(40, 3)), RNG.normal(size=(90, 3))


@pytest.fixture(params=["student", "teacher"])
def fitted(request):
    if request.param == "teacher":
        return NTKTeacher(stopping_time=1.0).fit(X, X[:, 0] > 0)
    return LinearizedKDStudent().fit(X, X[:, 0] > 0, teacher_logits=X[:, 0])


def test_what_was_fitted_goes_to_the_device_once(fitted, tmp_path, monkeypatch):
    expected = copy.deepcopy(fitted).decision_function(X_NEW)  # the copy prepares its own rows
    for i, part in enumerate(np.split(X_NEW, [1, 40, 41])):
        np.save(tmp_path / f"{i}.npy", part)
    to_working, blocks, n_rows = TangentKernelClassifier._to_working, RowStream.blocks, []

    def counted(self, rows):
        n_rows.append(len(rows))
        return to_working(self, rows)

    monkeypatch.setattr(TangentKernelClassifier, "_to_working", counted)
    monkeypatch.setattr(RowStream, "blocks", lambda self, **options: blocks(self, 7, **options))
    found = fitted.decision_function(tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert n_rows == [len(fitted.X_fit_), len(fitted.dual_coef_)]
