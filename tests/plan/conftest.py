import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from small_plans import GRID

from sklearn_kd import DistillationPlan


@pytest.fixture(scope="session")
def digits():
    """Rows and labels of the digits 3 and 8, and a teacher of other rows of them."""
    X, y = load_digits(return_X_y=True)
    some = np.isin(y, (3, 8))
    X, y = X[some] / 16, (y[some] == 8).astype(int)
    teacher = FrozenEstimator(LogisticRegression(C=0.01).fit(X[:60], y[:60]))
    return X[60:260], y[60:260], teacher


@pytest.fixture(scope="session")
def plan(digits):
    X, y, teacher = digits
    return DistillationPlan(teachers=teacher, **GRID).fit(X, y)
