"""What is looked up is what was computed."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.plan._known import KnownKernel, KnownLogits


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    X[4] = X[1]
    X[5, 0], X[6] = 0.0, X[5]
    X[6, 0] = -0.0
    return X


def test_known_rows_are_looked_up(rows, monkeypatch):
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    kernel = EmpiricalNTK(module)
    own, known = kernel.to_torch(), KnownKernel(kernel, rows)
    some, others = rows[[4, 2, 8, 2]], rows[[0, 1, 6]]
    expected = {
        "block": own.block(some, others),
        "gram": own.gram(rows),
        "diag": own.diag(some),
        "outputs": own.outputs(some),
    }
    monkeypatch.setattr(known, "_function", None)  # it is not asked again
    torch.testing.assert_close(known.block(some, others), expected["block"])
    torch.testing.assert_close(known.gram(rows), expected["gram"])
    out = torch.empty(9, 9, dtype=torch.float64)
    torch.testing.assert_close(known.gram(rows, out=out), expected["gram"])
    torch.testing.assert_close(known.diag(some), expected["diag"])
    torch.testing.assert_close(known.outputs(some), expected["outputs"])


def test_other_rows_are_computed(rows):
    kernel = NTK(depth=2)
    known, own = KnownKernel(kernel, rows), kernel.to_torch()
    new = rows + 1
    torch.testing.assert_close(known.block(new, rows), own.block(new, rows))
    torch.testing.assert_close(known.gram(new), own.gram(new))
    torch.testing.assert_close(known.diag(new), own.diag(new))
    assert known.outputs(new) is None


def test_logits_of_known_rows():
    X, z = np.eye(4), np.arange(4.0)
    teacher = KnownLogits(np.array([0, 1]), [(X, z), (2 * X, -z)])
    np.testing.assert_array_equal(teacher.decision_function(X), z)
    np.testing.assert_array_equal(teacher.decision_function(2 * np.eye(4)), -z)
    with pytest.raises(ValueError, match="no teacher that could be asked about others"):
        teacher.decision_function(X[:2])
