"""The student with its soft ratio, temperature, ridge and kernel chosen by cross-validation."""

from __future__ import annotations

import itertools
import os
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._kernel_machine import TangentKernelClassifier
from sklearn_kd._progress import FitTask, fit_task
from sklearn_kd._sklearn import HasMethods, StrOptions, fit_context
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.rows._streams import RowStream
from sklearn_kd.rows._training_rows import DistinctRows, TrainingRows
from sklearn_kd.search._by_factor import ExactSearch
from sklearn_kd.search._by_pass import RestrictedSearch
from sklearn_kd.search._by_pcg import IteratedSearch
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._problem import Problem, read_rows
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.solvers._choice import Solution
from sklearn_kd.students._student import LinearizedKDStudent

# What a fit without ``refit``, or without a deciding score, does not set.
_OF_THE_BEST = (
    "best_estimator_",
    "best_index_",
    "best_params_",
    "best_score_",
    "kernel_",
    "X_fit_",
    "dual_coef_",
    "n_iter_",
)


# What only some solvers read.
_OF_SOLVERS = (
    "tol",
    "max_iter",
    "n_landmarks",
    "landmarks",
    "random_state",
    "n_jobs",
    "checkpoint",
)


class LinearizedKDStudentCV(TangentKernelClassifier):
    r"""The linearized student with ρ, T, ridge and kernel chosen by cross-validation.

    ρ and T change only the right-hand side of Θ a = z_eff, so the whole grid costs one factor per
    fold, ridge and kernel, or, where that takes fewer operations (leave-one-out, five folds or
    more), one of all rows that folds are left out of. The scores are those of explicit refits.

    Parameters
    ----------
    teacher : classifier, default=None
        As in :class:`LinearizedKDStudent`; cross-fitted once for all candidates.
    soft_ratios : sequence of float in (0, 1], default=(0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
        Candidates for the weight ρ of the soft labels.
    temperatures : sequence of float > 0, default=(1.0, 2.0, 5.0)
        Candidates for the temperature T.
    ridges : sequence of float ≥ 0, default=(0.0,)
        Candidates for the ridge; each needs a factor per fold.
    kernel : callable, or list of them, default=None
        Tangent kernel, as in :class:`LinearizedKDStudent`. A list is searched too.
    temperature_scaling : {"none", "squared"}, default="none"
        As in :class:`LinearizedKDStudent`.
    init : {"zero", "network"}, default="zero"
        As in :class:`LinearizedKDStudent`.
    cv : int, splitter, iterable or None, default=None
        Folds, as `sklearn.model_selection.check_cv` reads them. None: leave-one-out in closed
        form, by distinct rows: exact copies of a row are left out together.
    scoring : str, callable, list, tuple or dict, default=None
        Score, or several, as in :class:`~sklearn.model_selection.GridSearchCV`. None: accuracy.
    refit : bool or str, default=True
        Whether to fit the best candidate on all rows; with several scores the name of the one
        that decides, or False.
    one_standard_error : bool, default=False
        Whether to choose, among the candidates within one standard error of the best score, the
        one with the largest ρ, rather than the best.
    teacher_cv : int, splitter, iterable, "prefit" or None, default=None
        Cross-fitting of an unfitted teacher: ``cv`` of :class:`LinearizedKDStudent`. None: by the
        folds of ``cv``, five for leave-one-out.
    solver : {"auto", "cholesky", "pcg", "nystrom"}, default="auto"
        "auto" and "cholesky" factor the kernel matrix. "pcg" finds the same students by conjugate
        gradients, one iteration for each fold, ridge and kernel, and not leave-one-out. "nystrom"
        restricts the students to the
        span of ``n_landmarks`` landmarks, the same for all of them, and scores the whole grid by
        leave-one-out (``cv=None``): one pass over the rows for each kernel, and one for each
        ridge. They need not be in memory, but effective logits and predictions of all rows and
        candidates are. With all rows as landmarks it is the exact search.
    tol, max_iter
        Of ``solver="pcg"``, as in :class:`LinearizedKDStudent`.
    n_landmarks, landmarks, n_jobs, checkpoint
        Of ``solver="nystrom"``, as in :class:`LinearizedKDStudent`.
    random_state : int, RandomState instance or None, default=None
        Of ``solver="pcg"`` and ``"nystrom"``, as in :class:`LinearizedKDStudent`.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is CUDA where available, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Working precision. "auto" is float64 whatever the dtype of ``X``.
    memory_limit : "auto" or float, default="auto"
        Bytes that the fit may take; "auto" is 90 % of what is free.

    Attributes
    ----------
    best_estimator_ : LinearizedKDStudent
        The chosen student, fitted on all rows; only with ``refit``.
    best_params_ : dict
        Its ``soft_ratio``, ``temperature``, ``ridge`` and, from a list, ``kernel``.
    best_index_ : int
        Its position in ``cv_results_``.
    best_score_ : float
        Its mean held-out score.
    cv_results_ : dict of ndarray
        As in :class:`~sklearn.model_selection.GridSearchCV`, without times; in addition
        ``stderr_test_<score>``, the standard error of ``mean_test_<score>``. With ``cv=None`` the
        mean is the score of all leave-one-out predictions together, and the "splits" are ten
        groups of them, or as many as the rarest class has rows if these are fewer than ten, but
        more than one.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    teacher_ : classifier or None
        The fitted teacher; None if ``teacher_logits`` stood in for it.
    scorer_ : callable
        The scorer.
    n_splits_ : int
        Number of folds; the number of groups for leave-one-out.
    n_iter_ : int
        Iterations of the chosen student's solver, as in :class:`LinearizedKDStudent`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Feature names, where ``X`` has string names.

    Raises
    ------
    MemoryBudgetError
        If the kernel matrix and the factor of a fold do not fit ``memory_limit``.
    NotPSDError
        If a kernel matrix is not positive definite, beyond rounding.

    See Also
    --------
    LinearizedKDStudent : One (ρ, T).

    Notes
    -----
    Ties go to the larger ρ, then to the smaller T, the larger ridge and the earlier kernel. An
    unfitted teacher is cross-fitted once on all rows, so that it has seen neighbours of each fold
    (not its rows' labels); in :class:`~sklearn.model_selection.GridSearchCV` it is cross-fitted
    inside each fold, which takes longer by far.

    Sample weights enter the fits and the scores.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudentCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> search = LinearizedKDStudentCV(LogisticRegression()).fit(X[:400], y[:400])
    >>> search.best_params_
    {'ridge': 0.0, 'soft_ratio': 1.0, 'temperature': 1.0}
    >>> search.score(X[400:], y[400:]) > 0.95
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **TangentKernelClassifier._parameter_constraints,
        "teacher": [HasMethods(["fit", "predict"]), None],
        "soft_ratios": ["array-like"],
        "temperatures": ["array-like"],
        "ridges": ["array-like"],
        "kernel": [callable, list, tuple, None],
        "temperature_scaling": [StrOptions({"none", "squared"})],
        "init": [StrOptions({"zero", "network"})],
        "cv": ["cv_object", None],
        "scoring": [str, callable, list, tuple, dict, None],
        "refit": ["boolean", str],
        "one_standard_error": ["boolean"],
        "teacher_cv": ["cv_object", StrOptions({"prefit"}), None],
        "solver": [StrOptions({"auto", "cholesky", "pcg", "nystrom"})],
        **{name: LinearizedKDStudent._parameter_constraints[name] for name in _OF_SOLVERS},
    }

    def __init__(
        self,
        teacher: ClassifierMixin | None = None,
        *,
        soft_ratios: Any = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0),
        temperatures: Any = (1.0, 2.0, 5.0),
        ridges: Any = (0.0,),
        kernel: Any = None,
        temperature_scaling: str = "none",
        init: str = "zero",
        cv: Any = None,
        scoring: Any = None,
        refit: bool | str = True,
        one_standard_error: bool = False,
        teacher_cv: Any = None,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 500,
        n_landmarks: int = 1000,
        landmarks: str = "rpcholesky",
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        checkpoint: str | os.PathLike | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
    ) -> None:
        self.teacher = teacher
        self.soft_ratios = soft_ratios
        self.temperatures = temperatures
        self.ridges = ridges
        self.kernel = kernel
        self.temperature_scaling = temperature_scaling
        self.init = init
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.one_standard_error = one_standard_error
        self.teacher_cv = teacher_cv
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.n_landmarks = n_landmarks
        self.landmarks = landmarks
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, teacher_logits: Any = None, sample_weight: Any = None) -> Self:
        """Score every candidate on held-out rows and fit the best one on all.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows. The teacher is given ``X`` as it is, a data frame too.
        y : array-like of shape (n_samples,)
            Hard labels: integers or strings.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``; they replace the teacher.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights. Rows of weight 0 are left out.

        Returns
        -------
        self : LinearizedKDStudentCV
            The fitted search.
        """
        grid = self._grid()
        n_stages = len(grid.kernels) * len(grid.ridges) + 3  # teaching may take two
        n_stages += len(grid.kernels) if self.solver == "nystrom" else 0
        with fit_task(self, X, y, sample_weight, n_stages=n_stages) as progress:
            for name in _OF_THE_BEST:
                self.__dict__.pop(name, None)
            rows, distinct, stream = read_rows(self, X, y, sample_weight)

            # 1. What serves every candidate: factors of folds, or sums over all rows.
            students = self._students(grid, rows, distinct, stream)

            # 2. The teacher's logits z_t on the training rows, once for all candidates.
            teacher_cv = students.teacher_cv if self.teacher_cv is None else self.teacher_cv
            first = self._student(self.teacher, teacher_cv, grid.kernels[0], 0.0)
            self.teacher_, z_t = first._teach(X, rows, teacher_logits, progress)
            first._warn_if_saturated(z_t)

            # 3. The scores of the students that have not seen the rows they are scored on.
            problem = Problem(rows, distinct, z_t.values, grid.recipes)
            scores = FoldScores(self.scoring, problem)
            students.score(problem, scores, progress)

            # 4. The best candidate, fitted on all rows.
            self.scorer_, self.n_splits_ = scores.scorer, scores.n_splits
            self.cv_results_ = scores.cv_results(grid)
            self.classes_ = rows.classes
            self._select(grid)
            if self.refit:
                at_hand = students.at_hand(self.best_params_, progress)
                self._refit(X, y, z_t.values, sample_weight, at_hand, progress)
        return self

    def _students(
        self, grid: Grid, rows: TrainingRows, distinct: DistinctRows, stream: RowStream | None
    ) -> ExactSearch | IteratedSearch | RestrictedSearch:
        if stream is not None:
            return RestrictedSearch(self, grid, rows, distinct, stream)
        if self.solver == "pcg":
            return IteratedSearch(self, grid, rows, distinct)
        return ExactSearch(self, grid, rows, distinct)

    def _grid(self) -> Grid:
        axes = {
            "soft_ratios": ("numbers in (0, 1]", lambda v: (v > 0) & (v <= 1)),
            "temperatures": ("positive numbers", lambda v: v > 0),
            "ridges": ("numbers of at least 0", lambda v: v >= 0),
        }
        checked = {}
        for name, (what, is_valid) in axes.items():
            values = np.asarray(getattr(self, name), dtype=float)
            valid = values.ndim == 1 and len(values) and np.isfinite(values).all()
            if not valid or not is_valid(values).all() or len(np.unique(values)) < len(values):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be a sequence of distinct {what}."
                )
            checked[name] = values.tolist()
        is_list = isinstance(self.kernel, (list, tuple))
        kernels = list(self.kernel) if is_list else [self.kernel]
        if not kernels:
            raise ValueError("kernel=[] holds no kernel; give one, or None for NTK().")
        return Grid(
            kernels=kernels,
            ridges=checked["ridges"],
            recipes=[
                {
                    "soft_ratio": soft_ratio,
                    "temperature": temperature,
                    "temperature_scaling": self.temperature_scaling,
                }
                for soft_ratio, temperature in itertools.product(
                    checked["soft_ratios"], checked["temperatures"]
                )
            ],
            names_kernel=is_list,
        )

    def _student(self, teacher: Any, cv: Any, kernel: Any, ridge: float, **recipe: Any) -> Any:
        return LinearizedKDStudent(
            teacher,
            kernel=kernel,
            ridge=ridge,
            init=self.init,
            cv=cv,
            device=self.device,
            dtype=self.dtype,
            memory_limit=self.memory_limit,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            n_landmarks=self.n_landmarks,
            landmarks=self.landmarks,
            random_state=self.random_state,
            n_jobs=self.n_jobs,
            **recipe,
        )

    def _select(self, grid: Grid) -> None:
        names = [k.removeprefix("mean_test_") for k in self.cv_results_ if k[:5] == "mean_"]
        if names == ["score"]:
            deciding = "score"
        elif isinstance(self.refit, str) and self.refit in names:
            deciding = self.refit
        elif self.refit is False:
            return
        else:
            raise ValueError(
                f"refit={self.refit!r} must be one of the scores {names}, which decides, or False."
            )
        mean = self.cv_results_[f"mean_test_{deciding}"]
        if np.isnan(mean).any():
            raise ValueError(
                f"scoring={self.scoring!r}: {deciding!r} is NaN for {np.isnan(mean).sum()} of "
                f"{len(mean)} candidates. Use a score that every fold defines, or larger folds."
            )
        close_to_teacher = grid.preference(self.cv_results_["params"])
        eligible = mean == mean.max()
        if self.one_standard_error:
            margin = self.cv_results_[f"stderr_test_{deciding}"][mean.argmax()]
            eligible = mean >= mean.max() - margin
        self.best_index_ = min(np.flatnonzero(eligible).tolist(), key=close_to_teacher.__getitem__)
        self.best_params_ = self.cv_results_["params"][self.best_index_]
        self.best_score_ = float(mean[self.best_index_])

    def _refit(
        self,
        X: Any,
        y: Any,
        teacher_logits: Tensor,
        sample_weight: Any,
        at_hand: TangentFrame | Solution | None,
        progress: FitTask,
    ) -> None:
        teacher = None if self.teacher_ is None else FrozenEstimator(self.teacher_)
        params = {"kernel": self.kernel, **self.best_params_}
        student = self._student(teacher, 5, **params, temperature_scaling=self.temperature_scaling)
        if isinstance(at_hand, Solution):
            student._solution_at_hand = at_hand
        else:
            student._frame_at_hand = at_hand  # None: the student is fitted as any other
        with progress.fit_of(student, "refit"):
            self.best_estimator_ = student.fit(X, y, teacher_logits.numpy(), sample_weight)
        for name in ("kernel_", "X_fit_", "dual_coef_", "n_iter_"):
            setattr(self, name, getattr(student, name))

    def _check_new_rows(self, X: Any, method: str) -> Any:
        check_is_fitted(self)
        if not self.refit:
            raise AttributeError(f"{method} needs the best student; set refit=True and fit again.")
        return super()._check_new_rows(X, method)

    def _logits(self, X: Any) -> Tensor:
        return self.best_estimator_._logits(X)
