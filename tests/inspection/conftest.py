"""A fitted student, its teacher and held-out rows."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

from sklearn_kd import LinearizedKDStudent


@pytest.fixture(scope="session")
def cancer():
    """Return training rows, their labels, held-out rows, their labels, and a fitted teacher."""
    X, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = scale(X)[order], y[order]
    teacher = FrozenEstimator(LogisticRegression(C=0.01).fit(X[:100], y[:100]))
    return X[100:220], y[100:220], X[220:], y[220:], teacher


@pytest.fixture(scope="session")
def student(cancer):
    """Return a student of two classes on 120 rows."""
    X, y, _, _, teacher = cancer
    return LinearizedKDStudent(teacher, soft_ratio=0.8, temperature=2.0).fit(X, y)


@pytest.fixture(scope="session")
def soft_student(cancer):
    """Return a student of soft labels alone."""
    X, y, _, _, teacher = cancer
    return LinearizedKDStudent(teacher, soft_ratio=1.0, temperature=2.0).fit(X, y)
