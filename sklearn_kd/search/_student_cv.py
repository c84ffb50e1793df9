"""The student with its soft ratio, temperature, ridge and kernel chosen by cross-validation."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from sklearn.base import ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._classifier import LogitClassifier
from sklearn_kd._kernel_machine import TangentKernelClassifier
from sklearn_kd._progress import FitTask, fit_task
from sklearn_kd._sklearn import CallbackSupportMixin, HasMethods, StrOptions, fit_context
from sklearn_kd.rows._checking import check_new_rows
from sklearn_kd.search._by_factor import SearchByFactor
from sklearn_kd.search._by_iteration import SearchByIteration
from sklearn_kd.search._by_pass import SearchByPass, rows_of_landmarks
from sklearn_kd.search._grid import Grid
from sklearn_kd.search._problem import Problem, Setting
from sklearn_kd.search._protocol import CandidateSearch
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.search._selection import select
from sklearn_kd.solvers import PCG, Cholesky, Nystrom
from sklearn_kd.solvers._choice import TakesSolver, named_solver
from sklearn_kd.solvers._system import Solver
from sklearn_kd.students._posed import default_teacher, read_rows
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.teachers._ntk_teacher import NTKTeacher
from sklearn_kd.teachers._teaching import (
    Taught,
    is_fitted,
    teach,
    teach_folds,
    warn_if_saturated,
)

# Leave-one-out in closed form is for logits that do not depend on the labels.
_FOLDS_OF_UNFITTED = 5

# What a fit without ``refit``, or without a deciding score, does not set.
_OF_THE_BEST = (
    "best_estimator_",
    "best_index_",
    "best_params_",
    "best_score_",
    "verdict_",
    "kernel_",
    "X_fit_",
    "dual_coef_",
    "n_iter_",
)


class LinearizedKDStudentCV(TakesSolver, CallbackSupportMixin, LogitClassifier):
    r"""The linearized student with ρ, T, ridge and kernel chosen by cross-validation.

    ρ and T change only the right-hand side of Θ a = z_eff, so the whole grid costs one factor per
    fold, ridge and kernel, or, where that takes fewer operations (leave-one-out, five folds or
    more), one of all rows that folds are left out of. The scores are those of explicit refits.

    Parameters
    ----------
    teacher : classifier, default=None
        As in :class:`LinearizedKDStudent`. An unfitted one is cross-fitted within the folds, once
        for all candidates, so that no label reaches its own score: see Notes.
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
        form, by distinct rows: exact copies of a row are left out together. With an unfitted
        teacher, which would be fitted once for each pair of rows, None is five stratified folds.
    scoring : str, callable, list, tuple or dict, default=None
        Score, or several, as in :class:`~sklearn.model_selection.GridSearchCV`. None: accuracy. A
        callable gets the held-out rows, and may ask its student about these only.
    refit : bool or str, default=True
        Whether to fit the best candidate on all rows; with several scores the name of the one
        that decides, or False.
    one_standard_error : bool, default=False
        Whether to choose, among the candidates whose difference to the best score is within one
        of its paired standard errors, the one with the largest ρ, rather than the best.
    teacher_cv : int, splitter, iterable, "prefit" or None, default=None
        Cross-fitting of an unfitted teacher inside the training rows of each fold: ``cv`` of
        :class:`LinearizedKDStudent`. None: by pairs of the folds of ``cv`` or, where these are no
        partition of the rows into three or more, by five. An iterable holds folds of all rows.
        "prefit": the teacher is fitted.
    solver : {"auto", "cholesky", "pcg", "nystrom"} or solver, default="auto"
        A name, or an object of `sklearn_kd.solvers` with options of its own. "auto" and "cholesky"
        factor the kernel matrix. "pcg" finds the same students by conjugate gradients, one run for
        each fold, ridge and kernel, but needs folds (``cv``). "nystrom" restricts the
        students to the span of its landmarks, the same for all of them, and scores the whole grid
        by leave-one-out (``cv=None``, a fitted teacher): one pass over the rows for each kernel,
        and one for each ridge. The rows need not be in memory, but effective logits and
        predictions of all rows and candidates are. With all rows as landmarks it is the exact
        search.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is CUDA where available, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Working precision. "auto" is float64 whatever the dtype of ``X``.
    memory_limit : "auto" or float, default="auto"
        Bytes that the fit may take; "auto" is 90 % of what is free, shared with the workers of a
        joblib pool.
    n_jobs : int, default=None
        Workers, of any :mod:`joblib` backend, that fit the clones of an unfitted teacher. None is 1
        outside of a `joblib.parallel_config`; -1 is all processors. They get the rows and the
        teacher, not the kernel matrix, and change no result.

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
    verdict_ : str
        The choice, how many cells are as good, how much worse ρ = 1 is (or the smallest ρ, where
        ρ = 1 is best), and the axes on whose edge the choice lies. "Inconclusive" where more than
        half of the cells are as good.
    cv_results_ : dict of ndarray
        As in :class:`~sklearn.model_selection.GridSearchCV`, without times; in addition, for each
        score, ``stderr_test_<score>``, the standard error of ``mean_test_<score>``;
        ``diff_test_<score>``, the mean less the best mean; ``stderr_diff_test_<score>``, its paired
        standard error; and ``in_best_set_<score>``, whether the held-out rows cannot tell the cell
        from the best one at 90 %: see Notes. ``in_best_set`` is that of the score that decides.
        With ``cv=None`` the mean is the score of all leave-one-out predictions together, and the
        "splits" are ten groups of them, or as many as the rarest class has rows if these are fewer
        than ten, but more than one. An unfitted teacher makes it five folds.
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
    ValueError
        If the teacher is unfitted and the solver is "nystrom", which scores by leave-one-out.
    MemoryBudgetError
        If the kernel matrix and the factor of a fold do not fit ``memory_limit``.
    NotPSDError
        If a kernel matrix is not positive definite, beyond rounding.

    See Also
    --------
    LinearizedKDStudent : One (ρ, T).

    Notes
    -----
    Ties go to the larger ρ, then to the smaller T, the larger ridge and the earlier kernel.

    No label reaches its own score by way of an unfitted teacher. The student that is scored on fold
    k learns the rows of fold j from a clone that has seen neither j nor k. The clones without one
    fold give the teacher's logits on the held-out rows, as scores ask for them, and those that the
    best student learns. For K folds these are K(K−1)/2 + K fits and one on all rows, whatever the
    number of candidates. With ``teacher_cv`` the clones are those of
    :class:`~sklearn.model_selection.GridSearchCV` over ``LinearizedKDStudent(teacher,
    cv=teacher_cv)``, which fits them again for each candidate. Frozen teachers and given
    ``teacher_logits`` are taken as they are: logits that were fitted to ``y``, cross-fitted ones
    too, make the scores too good, the more so the larger ρ.

    Sample weights enter the fits and the scores.

    All cells are scored on the same rows, so their differences are paired: row by row where a score
    is a mean over rows (accuracy, log loss, Brier score, transfer risk), copies of a row being one
    draw, else by fold, or by group. Rows, or folds, are taken as independent of each other. A cell
    is left out of the best set if another one is better by more than the largest of all differences
    to it would be by chance [1]_, [2]_: the truly best cell is in the set with a probability of
    90 %, however many cells there are. By row the limit comes from the covariance of the cells, by
    2000 draws with a fixed seed; by fold from Student's t and Bonferroni's inequality, so that five
    folds tell little. Folds that overlap count for fewer [3]_.

    References
    ----------
    .. [1] J. C. Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with
       the best", Annals of Statistics 12, 1984.
    .. [2] J. Lei, "Cross-validation with confidence", JASA 115, 2020.
    .. [3] C. Nadeau and Y. Bengio, "Inference for the generalization error", Machine Learning 52,
       2003.

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
        "teacher": [HasMethods(["fit"]), None],
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
        "solver": [StrOptions({"auto", "cholesky", "pcg", "nystrom"}), Cholesky, PCG, Nystrom],
        "n_jobs": [Integral, None],
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
        solver: str | Solver = "auto",
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
        n_jobs: int | None = None,
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
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, teacher_logits: Any = None) -> Self:
        """Score every candidate on held-out rows and fit the best one on all.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows. The teacher is given ``X`` as it is, a data frame too.
        y : array-like of shape (n_samples,)
            Hard labels: integers or strings.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights. Rows of weight 0 are left out.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``; they replace the teacher. They must not come from ``y``:
            if they do, by cross-fitting too, the scores have seen the labels.

        Returns
        -------
        self : LinearizedKDStudentCV
            The fitted search.
        """
        grid, solver = self._grid(), named_solver(self.solver)
        n_stages = len(grid.kernels) * (len(grid.ridges) + 1) + 4  # teaching may take two
        with fit_task(self, X, y, sample_weight, n_stages=n_stages) as progress:
            # 1. What serves every candidate: factors of folds, or sums over all rows.
            sees_labels = teacher_logits is None and not is_fitted(self.teacher, self.teacher_cv)
            students = self._students(grid, solver, sees_labels, X, y, sample_weight)
            rows = students.setting.rows.checked

            # 2. The teacher's logits z_t on the training rows, once for all candidates. A teacher
            #    that sees the labels has others for each fold: no label reaches its own score.
            taught = self._taught(students, X, teacher_logits, progress)
            warn_if_saturated(self.teacher, taught.logits)

            # 3. The scores of the students that have not seen the rows they are scored on.
            problem = Problem(students.setting, taught)
            scores = FoldScores(self.scoring, problem)
            students.score(problem, scores, progress)

            # 4. The best candidate, fitted on all rows.
            results = scores.cv_results(grid)
            best = select(self, grid, scores, results)
            if self.refit:
                best |= self._fit_best(students, problem, best["best_index_"], progress)
            for name in _OF_THE_BEST:
                self.__dict__.pop(name, None)
            self.__dict__.update(
                classes_=rows.classes,
                teacher_=taught.teacher,
                scorer_=scores.scorer,
                n_splits_=scores.n_splits,
                cv_results_=results,
                **best,
            )
        return self

    def _grid(self) -> Grid:
        return Grid.of(
            soft_ratios=self.soft_ratios,
            temperatures=self.temperatures,
            ridges=self.ridges,
            kernel=self.kernel,
            temperature_scaling=self.temperature_scaling,
        )

    def _students(
        self, grid: Grid, solver: Solver, sees_labels: bool, X: Any, y: Any, sample_weight: Any
    ) -> CandidateSearch:
        """Return the students of all candidates, once they are known to fit the memory."""
        rows = read_rows(self, X, y, sample_weight, solver)
        if isinstance(solver, Nystrom):
            rows = rows_of_landmarks(self, rows, solver, sees_labels)
            if isinstance(rows.X, Tensor):
                solver = Cholesky()  # every row is a landmark: the exact students
        cv = _FOLDS_OF_UNFITTED if sees_labels and self.cv is None else self.cv
        setting = Setting(
            grid,
            rows,
            solver,
            cv,
            self.init,
            bool(self.refit),
            self.memory_limit,
            sees_labels,
            n_scores=len(self.scoring) if isinstance(self.scoring, list | tuple | dict) else 1,
        )
        if isinstance(solver, PCG):
            return SearchByIteration(setting)
        if isinstance(solver, Nystrom):
            return SearchByPass(setting)
        return SearchByFactor(setting)

    def _taught(
        self,
        students: CandidateSearch,
        X: Any,
        teacher_logits: Any,
        progress: FitTask,
    ) -> Taught:
        """Return the fitted teacher and its logits, by fold where it is fitted to these labels."""
        rows, kernel = students.setting.rows.checked, students.setting.grid.used_kernels[0]
        cv, splits = self.teacher_cv, students.splits

        def default() -> NTKTeacher:
            return default_teacher(self, kernel)

        if students.setting.sees_labels:
            return teach_folds(
                self.teacher,
                X,
                rows,
                splits=splits,
                cv=cv,
                default=default,
                progress=progress,
                n_jobs=self.n_jobs,
            )
        teacher, z_t = teach(
            self.teacher, X, rows, teacher_logits, cv=cv, default=default, progress=progress
        )
        return Taught(teacher, z_t, by_fold=None)

    def _fit_best(
        self, students: CandidateSearch, problem: Problem, index: int, progress: FitTask
    ) -> dict[str, Any]:
        """Return the attributes of the best student, fitted on all rows."""
        candidate = problem.setting.grid.candidates[index]
        posed = students.posed(problem, candidate)
        with progress.stage("refit") as task:
            solution = students.solve(problem, posed, candidate, task)
        teacher = problem.taught.teacher
        params = {"kernel": self.kernel, **problem.setting.grid.params_of(candidate)}
        student = LinearizedKDStudent(
            None if teacher is None else FrozenEstimator(teacher),
            init=self.init,
            temperature_scaling=self.temperature_scaling,
            solver=clone(self.solver, safe=False),
            device=self.device,
            dtype=self.dtype,
            memory_limit=self.memory_limit,
            **params,
        )
        student._adopt(posed, solution)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(student, name, getattr(self, name))
        of_the_best = {
            name: getattr(student, name) for name in ("kernel_", "X_fit_", "dual_coef_", "n_iter_")
        }
        return {"best_estimator_": student, **of_the_best}

    def _check_new_rows(self, X: Any, method: str) -> Any:
        check_is_fitted(self)
        if not hasattr(self, "best_estimator_"):
            raise AttributeError(f"{method} needs the best student; set refit=True and fit again.")
        return check_new_rows(self, X, method)

    def _logits(self, X: Any) -> Tensor:
        return self.best_estimator_._logits(X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags
