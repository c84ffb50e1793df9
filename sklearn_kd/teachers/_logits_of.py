"""The logits of any classifier, on rows it has not seen."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import indexable
from sklearn.utils.validation import has_fit_parameter
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._logits import canonical_logits
from sklearn_kd._progress import FitTask
from sklearn_kd._sklearn import safe_indexing
from sklearn_kd.rows._splits import splits_of
from sklearn_kd.rows._streams import as_row_stream, is_streamed


class Logits(NamedTuple):
    """A teacher's logits, and in how many rows a probability of 0 was clipped for them."""

    values: Tensor  # (n,) or (n, K), float64 on the CPU
    n_clipped: int


def logits_of(teacher: Any, X: Any, classes: np.ndarray) -> Logits:
    """Return the logits of a fitted ``teacher`` on the rows ``X``.

    They come from ``decision_function`` where the teacher has it, else they are the log-odds
    (K ≥ 3: centred log-probabilities) of ``predict_proba``, with probabilities clipped from below
    at the resolution of their dtype. Rows that need not be in memory are read block by block.

    Raises
    ------
    ValueError
        If the teacher's classes are not ``classes``, or its output has another shape.
    TypeError
        If the teacher has neither method.
    """
    _check_classes(teacher, classes)
    if is_streamed(X):
        blocks = [logits_of(teacher, to_numpy(b), classes) for _, b in as_row_stream(X).blocks()]
        values = torch.cat([block.values for block in blocks])
        return Logits(values, sum(block.n_clipped for block in blocks))
    name = type(teacher).__name__
    n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if hasattr(teacher, "decision_function"):
        scores = teacher.decision_function(X)
        origin = f"{name}.decision_function(X)"
        return Logits(canonical_logits(scores, n_rows, len(classes), name=origin), 0)
    if not hasattr(teacher, "predict_proba"):
        raise TypeError(
            f"teacher={name} has neither decision_function nor predict_proba; use a classifier "
            "with one of them, or pass teacher_logits to fit."
        )
    raw = teacher.predict_proba(X)
    dtype = torch.float32 if str(getattr(raw, "dtype", "")).endswith("float32") else torch.float64
    probabilities = to_tensor(raw, dtype=dtype)
    if probabilities.ndim != 2:
        raise ValueError(
            f"{name}.predict_proba(X) has shape {tuple(probabilities.shape)}; it must have one "
            f"column for each of {len(classes)} classes."
        )
    floor = torch.finfo(dtype).eps
    clipped = int((probabilities < floor).any(dim=1).sum())
    logs = probabilities.clamp_min(floor).log()
    origin = f"{name}.predict_proba(X)"
    return Logits(canonical_logits(logs, n_rows, len(classes), name=origin), clipped)


def cross_fitted_logits(
    teacher: Any,
    X: Any,
    labels: np.ndarray,
    classes: np.ndarray,
    *,
    cv: Any,
    sample_weight: Any,
    progress: FitTask,
) -> Logits:
    """Return logits on each row of ``X`` by a clone of ``teacher`` that was not fitted on it.

    ``labels`` are class indices (n,); ``cv`` is what `sklearn.model_selection.check_cv` takes,
    and its test folds must cover every row once.
    """
    n_rows = len(labels)
    (X,) = indexable(X)
    y = classes[labels]
    width = () if len(classes) == 2 else (len(classes),)
    values = torch.full((n_rows, *width), torch.nan, dtype=torch.float64, device="cpu")
    n_clipped = 0
    splitter = check_cv(cv, labels, classifier=True)
    splits = splits_of(splitter, labels, cv=cv)
    with progress.stage("cross-fit-teacher", len(splits)) as folds:
        for train, test in splits:
            missing = np.setdiff1d(np.arange(len(classes)), labels[train])
            if len(missing):
                raise ValueError(
                    f"Cross-fitting the teacher with cv={cv!r} leaves a training fold without "
                    f"class {classes[missing[0]]!r}; use fewer folds or a stratified splitter, "
                    "pass a FrozenEstimator as teacher, or pass teacher_logits to fit."
                )
            fold_teacher = fit_teacher(
                clone(teacher),
                safe_indexing(X, train),
                y[train],
                None if sample_weight is None else sample_weight[train],
                folds,
                "fold",
            )
            fold = logits_of(fold_teacher, safe_indexing(X, test), classes)
            values[test] = fold.values
            n_clipped += fold.n_clipped
    uncovered = values.reshape(n_rows, -1).isnan().any(dim=1)
    if uncovered.any():
        raise ValueError(
            f"Cross-fitting the teacher with cv={cv!r} leaves row {int(uncovered.nonzero()[0, 0])} "
            "in no test fold; use a splitter whose test folds cover every row."
        )
    return Logits(values, n_clipped)


def fit_teacher(
    teacher: Any,
    X: Any,
    y: np.ndarray,
    sample_weight: np.ndarray | None,
    progress: FitTask,
    name: str,
) -> Any:
    """Fit ``teacher``, with the sample weights where its ``fit`` takes them."""
    takes_weights = has_fit_parameter(teacher, "sample_weight")
    weights = {} if sample_weight is None or not takes_weights else {"sample_weight": sample_weight}
    with progress.fit_of(teacher, name):
        return teacher.fit(X, y, **weights)


def _check_classes(teacher: Any, classes: np.ndarray) -> None:
    if not hasattr(teacher, "classes_"):
        raise TypeError(
            f"teacher={type(teacher).__name__} has no classes_ after fit, so it is no classifier; "
            "use a scikit-learn classifier, or pass teacher_logits to fit."
        )
    known = np.asarray(teacher.classes_)
    if not np.array_equal(known, classes):
        raise ValueError(
            f"teacher={type(teacher).__name__} knows the classes {known.tolist()}, but y holds "
            f"{classes.tolist()}; fit teacher and student on the same labels."
        )
