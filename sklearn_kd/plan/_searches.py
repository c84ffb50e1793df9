"""The search for every student: which recipe, and which teacher, on held-out rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_kd._array import to_tensor
from sklearn_kd._logits import class_indices
from sklearn_kd._warnings import said_before
from sklearn_kd.plan._finding import Contrast, contrast
from sklearn_kd.plan._known import KnownKernel
from sklearn_kd.plan._students import Student
from sklearn_kd.plan._teachers import Teachers
from sklearn_kd.rows._checking import class_indices_of
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.search._student_cv import LinearizedKDStudentCV

N_FOLDS = 5
LEAST_LABELLED = 10


class Given(NamedTuple):
    """What a plan is fitted to."""

    X: Any  # as the user gave it
    y: Any
    rows: TrainingRows  # the same, checked
    splits: list[tuple[np.ndarray, np.ndarray]]  # folds of the rows: those to learn, and to score
    X_val: Any = None
    y_val: Any = None

    @property
    def labels_val(self) -> np.ndarray:
        """Class indices of the validation rows, -1 where there is no label."""
        return class_indices_of(self.y_val, self.rows.classes).numpy()

    @property
    def scored_labels(self) -> np.ndarray:
        """Class indices of the rows that are scored: validation rows, if there are any."""
        return self.rows.labels if self.X_val is None else self.labels_val

    @property
    def labelled(self) -> np.ndarray:
        """Numbers of the rows with a label."""
        return np.flatnonzero(self.rows.labels >= 0)


def folds_of(cv: Any, rows: TrainingRows, random_state: Any) -> list[Any]:
    """Return the folds of a plan; None: five stratified ones, in a random order of the rows.

    Raises
    ------
    ValueError
        If there are few labelled rows.
    """
    n_labelled = int((rows.labels >= 0).sum())
    if n_labelled < LEAST_LABELLED:
        raise ValueError(
            f"y has {n_labelled} labels, of which no answer follows: DistillationPlan needs "
            f"{LEAST_LABELLED} or more."
        )
    if cv is None:
        seed = check_random_state(random_state).randint(2**31 - 1)
        cv = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    return list(check_cv(cv, rows.labels, classifier=True).split(rows.array, rows.labels))


class Searched(NamedTuple):
    """A student with the search over its recipes."""

    student: Student
    search: LinearizedKDStudentCV  # fitted
    is_right: np.ndarray  # (n,) or (n_validation,) of the chosen recipe, held out; NaN if unknown
    last_time: float | None  # of a network's training; None: it converges
    teacher: str  # the chosen one
    teachers_right: np.ndarray  # (M, n) whether each teacher is, alone; NaN if unknown
    teacher_search: LinearizedKDStudentCV  # over all teachers; `search` where there is one

    @property
    def accuracy(self) -> tuple[float, float]:
        """The held-out accuracy of the chosen recipe, and its standard error.

        The error is that of one more row right and one more wrong, so that it is never 0.
        """
        right = self.is_right[np.isfinite(self.is_right)]
        n, share = len(right), (right.sum() + 1) / (len(right) + 2)
        return float(right.mean()), float(np.sqrt(share * (1 - share) / n))

    def chosen(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a search with the chosen kernel, teacher, recipe and ridge."""
        best = self.search.best_params_
        weights = best.get("teacher_weights")
        return {
            **options,
            "kernel": self.search.kernel,
            "teacher_weights": None if weights is None else [weights],
            "soft_ratios": [best["soft_ratio"]],
            "temperatures": [best["temperature"]],
            "ridges": [best["ridge"]],
        }

    @property
    def stops(self) -> bool:
        """Whether the student that is chosen stops, rather than converges."""
        return self.search.best_params_.get("stopping_time") is not None


def search_for(
    student: Student, teachers: Teachers, given: Given, options: dict[str, Any], cv: Any
) -> Searched:
    """Return a student with the search over the grid of the plan.

    A network is stood for by pilots, in finite time; their kernel is evaluated once.
    """
    params = {**options, "teacher_weights": teachers.weights, "cv": cv}
    if student.network is None:
        search = LinearizedKDStudentCV(teachers.teacher, kernel=student.kernel, **params)
    else:
        scaling = {"temperature_scaling": options["temperature_scaling"]}
        network = student.network.set_params(teacher=teachers.teacher, **scaling)
        if options.get("teacher_cv") == "prefit":
            network.set_params(cv="prefit")
        search = LinearizedKDStudentCV.for_network(network, given.X, given.y, **params)
        search.kernel = KnownKernel(search.kernel, _all_rows(given))
    fit = {"X": given.X, "y": given.y, "X_val": given.X_val, "y_val": given.y_val}
    teacher_search = search.fit(**fit)
    right = teachers_right(search, given)
    if teachers.weights is not None:
        # The recipes of one teacher, which a larger set of cells would hide.
        weights = chosen_weights(search, teachers, right)
        search = LinearizedKDStudentCV(**search.get_params(deep=False))
        search.set_params(teacher_weights=[weights])
        with said_before():
            search.fit(**fit)
    times = search.stopping_times
    return Searched(
        student,
        search,
        _is_right(search, given),
        None if times is None else max(t for t in times if t is not None),
        teachers.named(search.best_params_.get("teacher_weights")),
        right,
        teacher_search,
    )


def losses_of(search: LinearizedKDStudentCV, teachers: Teachers) -> dict[str, Contrast]:
    """Return how much worse the best recipe with each teacher, and with all, is than the best."""
    named = [teachers.named(params["teacher_weights"]) for params in search.cv_results_["params"]]
    return {
        name: contrast(search, np.array([one == name for one in named]))
        for name in dict.fromkeys(named)
    }


def chosen_weights(
    search: LinearizedKDStudentCV, teachers: Teachers, right: np.ndarray
) -> tuple[float, ...]:
    """Return the teacher to take: of those that cannot be told from the best, the most accurate.

    All in equal parts only where no single one is as good.
    """
    assert teachers.weights is not None
    losses = losses_of(search, teachers)
    as_good = [i for i, name in enumerate(teachers.names) if not losses[name].is_worse]
    if not as_good:
        return search.best_params_["teacher_weights"]
    accuracy = np.nanmean(right, axis=1)
    return teachers.weights[max(as_good, key=lambda index: accuracy[index])]


def teachers_right(search: LinearizedKDStudentCV, given: Given) -> np.ndarray:
    """Return whether each teacher is right on each row that is scored, (M, n); NaN if unknown.

    A teacher that is fitted to the rows is asked by cross-fitting.
    """
    student, labels = search.best_estimator_, given.scored_labels
    if given.X_val is None:
        members = student._member_logits()
    else:
        members = student._members_on(given.X_val, len(labels), None)
    chosen = np.stack([class_indices(logits).numpy() for logits in members])
    return np.where(labels >= 0, chosen == labels, np.nan)


def _all_rows(given: Given) -> Tensor:
    """Return the rows of the fit and of the validation, as kernels are given them."""
    if given.X_val is None:
        return given.rows.X
    return torch.cat([given.rows.X, to_tensor(np.asarray(given.X_val)).to(given.rows.X)])


def _is_right(search: LinearizedKDStudentCV, given: Given) -> np.ndarray:
    """Return whether the class of each held-out row is its label; NaN where none was scored."""
    logits = to_tensor(search.held_out_decision_function_)
    scored = logits.reshape(len(logits), -1).isfinite().all(dim=1).numpy()
    return np.where(scored, class_indices(logits).numpy() == given.scored_labels, np.nan)
