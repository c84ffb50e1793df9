"""Generated problems for the fuzz tests, and what may come of running them."""

import contextlib
import itertools
import linecache
import math
import signal
import traceback
import warnings
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process.kernels import RBF, Matern

from sklearn_kd.exceptions import (
    IllConditionedWarning,
    MemoryBudgetError,
    NotPSDError,
    SaturatedTeacherWarning,
    SeenLabelsWarning,
    UnscaledFeaturesWarning,
)
from sklearn_kd.kernels import NTK

# What the docstrings name. Exact types: an OverflowError is no documented ArithmeticError.
ERRORS = (ValueError, NotPSDError, MemoryBudgetError, FloatingPointError, ArithmeticError)
WARNINGS = (
    ConvergenceWarning,
    IllConditionedWarning,
    SaturatedTeacherWarning,
    SeenLabelsWarning,
    UnscaledFeaturesWarning,
)

SECONDS_PER_CASE = 20


class Defect(AssertionError):
    """An outcome that is neither a right answer nor a documented error."""


class Problem(NamedTuple):
    """Training rows, a teacher's logits on them, and new rows with the same."""

    X: np.ndarray  # (n, d)
    y: np.ndarray  # (n,)
    teacher_logits: np.ndarray  # (n,) or (n, K)
    sample_weight: np.ndarray | None  # (n,)
    X_new: np.ndarray  # (m, d)
    y_new: np.ndarray  # (m,)
    new_teacher_logits: np.ndarray  # (m,) or (m, K)

    @property
    def training_set(self) -> dict[str, Any]:
        return {
            "X": self.X,
            "y": self.y,
            "teacher_logits": self.teacher_logits,
            "sample_weight": self.sample_weight,
        }


# Powers of ten; the ends are near the square roots of the smallest and the largest float64.
EXPONENTS = st.one_of(
    st.just(0), st.sampled_from([-150, -20, -8, -3, 3, 8, 20, 150]), st.integers(-150, 150)
)
SEEDS = st.integers(0, 2**32 - 1)
ROWS = {
    "constant feature": lambda X, rng: X[:, :1].fill(X[0, 0]),
    "equal rows": lambda X, rng: np.copyto(X, X[0].copy()),
    "duplicates": lambda X, rng: np.copyto(X, X[rng.integers(0, 1 + len(X) // 2, len(X))]),
    "near duplicates": lambda X, rng: np.copyto(
        X, X[rng.integers(0, 1 + len(X) // 2, len(X))] * (1 + 1e-14 * rng.normal(size=X.shape))
    ),
    "integers": lambda X, rng: np.rint(X, out=X),
    "scale per feature": lambda X, rng: np.multiply(
        X, 10.0 ** rng.integers(-8, 9, X.shape[1]), out=X
    ),
    "scale per row": lambda X, rng: np.multiply(X, 10.0 ** rng.integers(-8, 9, (len(X), 1)), out=X),
    "parallel rows": lambda X, rng: np.copyto(X, rng.normal(size=(len(X), 1)) * X[0]),
    "a row of zeros": lambda X, rng: X[-1:].fill(0),
}


@st.composite
def rows_of(draw, max_rows=40):
    """Rows (n, d) of any scale, with duplicates, constant features and worse; and a generator."""
    n = draw(st.sampled_from([n for n in (2, 3, 4, 5, 8, 20, 40) if n <= max_rows]))
    d = draw(st.sampled_from([1, 2, 5, 40]))
    rng = np.random.default_rng(draw(SEEDS))
    X = rng.normal(size=(n, d))
    for trait in draw(st.lists(st.sampled_from(sorted(ROWS)), max_size=2)):
        ROWS[trait](X, rng)
    return X * 10.0 ** draw(EXPONENTS), rng


@st.composite
def labels_of(draw, n_rows, rng):
    """Class indices, of two or more classes that all occur; balanced or with a class of one row."""
    n_classes = min(n_rows, draw(st.sampled_from([2, 2, 2, 3, 5])))
    y = rng.integers(0, n_classes, n_rows)
    if draw(st.booleans()):
        y[:] = n_classes - 1  # extreme imbalance
    y[rng.permutation(n_rows)[:n_classes]] = np.arange(n_classes)
    return y, n_classes


@st.composite
def logits_of(draw, n_rows, n_classes, rng):
    """A teacher's logits: tiny, ordinary, saturated, or all zero."""
    shape = n_rows if n_classes == 2 else (n_rows, n_classes)
    kind = draw(st.sampled_from(["ordinary", "ordinary", "tiny", "large", "saturated", "zero"]))
    size = {"ordinary": 2.0, "tiny": 1e-150, "large": 100.0, "saturated": 700.0, "zero": 0.0}[kind]
    z = rng.normal(size=shape)
    return size * (np.sign(z) if kind == "saturated" else z)


@st.composite
def weights_of(draw, n_rows, rng):
    """No row weights, counts with zeros among them, or weights of any size."""
    kind = draw(st.sampled_from(["none", "none", "counts", "any"]))
    if kind == "none":
        return None
    if kind == "counts":
        return rng.integers(0, 4, n_rows).astype(float)
    return 10.0 ** rng.uniform(-150, 150, n_rows)


@st.composite
def problems(draw, max_rows=40):
    """A whole problem; the labels are integers, strings or booleans."""
    X, rng = draw(rows_of(max_rows))
    y, n_classes = draw(labels_of(len(X), rng))
    z_t = draw(logits_of(len(X), n_classes, rng))
    weights = draw(weights_of(len(X), rng))
    X_new = X[rng.integers(0, len(X), 7)] * rng.choice([1.0, 1.1, -1.0, 0.0], size=(7, 1))
    y_new, z_new = rng.integers(0, n_classes, 7), z_t[rng.integers(0, len(X), 7)] / 2
    if draw(st.booleans()):
        names = np.array(["ant", "bee", "cat", "dog", "eel"])
        y, y_new = names[y], names[y_new]
    return Problem(X, y, z_t, weights, X_new, y_new, z_new)


@st.composite
def ntks(draw):
    """A tangent kernel of any depth and activation, without biases too."""
    return NTK(
        depth=draw(st.sampled_from([1, 2, 3, 10])),
        activation=draw(st.sampled_from(["relu", "relu", "leaky_relu", "erf", "gelu"])),
        weight_std=draw(st.sampled_from([1.0, 1.0, 0.1, 1.5])),
        bias_std=draw(st.sampled_from([1.0, 0.1, 0.0])),
    )


def kernels():
    """Mostly tangent kernels; also kernels of scikit-learn and plain functions."""
    others = [RBF(0.5), Matern(nu=0.5), lambda A, B: NTK(depth=1)(A, B)]
    return st.one_of(ntks(), ntks(), st.sampled_from(others))


SOFT_RATIOS = st.one_of(
    st.sampled_from([1e-8, 0.5, 0.9, 1 - 1e-8, 1.0]), st.floats(1e-12, 1.0, allow_subnormal=False)
)
TEMPERATURES = st.one_of(st.sampled_from([0.05, 0.5, 1.0, 2.0, 5.0, 100.0]), st.floats(1e-2, 1e3))
ALPHAS = st.sampled_from([0.0, 0.0, 0.0, 1e-150, 1e-6, 1.0, 1e6, 1e150])
DTYPES = st.sampled_from(["auto", "auto", "auto", "float64", "float32"])


# Outcomes


@contextlib.contextmanager
def time_limit(seconds):
    """Turn a hang into a defect."""

    def stop(*_):
        raise Defect(f"the case took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_documented(error):
    """Whether an exception is of a documented type and was raised on purpose, with a message."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    deliberate = linecache.getline(frame.filename, frame.lineno).strip().startswith("raise ")
    ours = any(f"/{package}/" in frame.filename for package in ("sklearn_kd", "sklearn"))
    known = type(error) in ERRORS or type(error).__name__ == "InvalidParameterError"
    return known and deliberate and ours and len(str(error)) > 20


def outcome(check, draw):
    """Run one case and return what came of it: "right", or the name of the documented error.

    Raises
    ------
    Defect
        Anything else: a wrong answer, an undocumented error or warning, too long a wait.
    """
    with warnings.catch_warnings(record=True) as caught, time_limit(SECONDS_PER_CASE):
        warnings.simplefilter("always")
        try:
            check(draw)
            result = "right"
        except ERRORS as error:
            if not is_documented(error):
                raise Defect(f"undocumented {type(error).__name__}: {error}") from error
            result = type(error).__name__
    for warning in caught:
        of_a_splitter = "least populated class" in str(warning.message)  # scikit-learn's own
        if not issubclass(warning.category, WARNINGS) and not of_a_splitter:
            where = f"{warning.filename}:{warning.lineno}"
            raise Defect(f"undocumented {warning.category.__name__}: {warning.message} ({where})")
    return result


@contextlib.contextmanager
def nothing_half_fitted(estimator):
    """Require that an error leaves an unfitted estimator as it was."""
    before = dict(vars(estimator))
    try:
        yield
    except ERRORS:
        if vars(estimator) != before:
            extra = sorted(set(vars(estimator)) - set(before))
            raise Defect(f"an error left {extra} on {type(estimator).__name__}") from None
        raise


def require_finite(**values):
    for name, value in values.items():
        if not np.isfinite(np.asarray(value, dtype=float)).all():
            raise Defect(f"{name} is not finite: {np.asarray(value).tolist()}")


def require_close(actual, expected, tolerance, what):
    """Require |actual − expected| ≤ tolerance entry by entry."""
    actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    if expected.ndim and actual.shape != expected.shape:
        raise Defect(f"{what} has shape {actual.shape}, expected {expected.shape}")
    require_finite(**{what: actual})
    actual, expected, tolerance = np.broadcast_arrays(actual, expected, tolerance)
    wrong = ~(np.abs(actual - expected) <= tolerance)
    if wrong.any():
        raise Defect(
            f"{what} is {actual[wrong][:3]}, expected {expected[wrong][:3]} within "
            f"{tolerance[wrong][:3]}"
        )


def require_range(values, low, high, what):
    require_finite(**{what: values})
    if not ((np.asarray(values) >= low) & (np.asarray(values) <= high)).all():
        raise Defect(f"{what} leaves [{low}, {high}]: {np.asarray(values).tolist()}")


def merged(problem, dtype=np.float64):
    """Rows of positive weight, grouped: distinct rows in order of appearance, members, weights."""
    X = problem.X.astype(dtype)
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(X):
        if problem.sample_weight is None or problem.sample_weight[i] > 0:
            groups.setdefault(tuple(row.tolist()), []).append(i)
    members = list(groups.values())
    weights = np.ones(len(X)) if problem.sample_weight is None else problem.sample_weight
    totals = np.array([math.fsum(weights[group]) for group in members])
    return X[[group[0] for group in members]], members, weights, totals


def pairs(n):
    return itertools.combinations_with_replacement(range(n), 2)
