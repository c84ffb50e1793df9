"""The student with soft ratio, temperature, ridge, time and kernel chosen by cross-validation."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._kernel_machine import KernelConstraint, TangentKernelClassifier
from sklearn_kd._progress import fit_task
from sklearn_kd._sklearn import CallbackSupportMixin, Interval, StrOptions, fit_context
from sklearn_kd.rows._checking import check_new_rows
from sklearn_kd.search._for_network import for_network
from sklearn_kd.search._planning import grid_of, planned_search, taught_by
from sklearn_kd.search._refit import fit_best
from sklearn_kd.search._rows_to_check import rows_to_check
from sklearn_kd.search._scores import FoldScores
from sklearn_kd.search._selection import select
from sklearn_kd.search._validation import Given, problem_of, read_validation
from sklearn_kd.solvers import PCG, Cholesky, Nystrom
from sklearn_kd.solvers._choice import TakesSolver, named_solver
from sklearn_kd.solvers._system import Solver
from sklearn_kd.students._labelled_score import ScoresLabelledRows
from sklearn_kd.students._posed import read_rows
from sklearn_kd.teachers._constraint import TeacherConstraint
from sklearn_kd.teachers._logits_of import METHODS
from sklearn_kd.teachers._teaching import class_hints, is_fitted

# What a fit without ``refit``, or without a deciding score, does not set.
_OF_THE_BEST = (
    "best_estimator_",
    "best_index_",
    "best_params_",
    "best_score_",
    "held_out_decision_function_",
    "verdict_",
    "_values_of_labels",
    "kernel_",
    "X_fit_",
    "dual_coef_",
    "n_iter_",
)


class LinearizedKDStudentCV(TakesSolver, CallbackSupportMixin, ScoresLabelledRows):
    r"""The linearized student with ρ, T, ridge, time and kernel chosen by cross-validation.

    ρ and T change only the right-hand side of Θ a = z_eff, so the whole grid costs one factor per
    fold, ridge and kernel, or, where that takes fewer operations (leave-one-out, five folds or
    more), one of all rows that folds are left out of. Students that stop are trained side by side,
    as columns of the same products with Θ. The scores are those of explicit refits.

    Parameters
    ----------
    teacher : classifier or list of them, default=None
        As in :class:`LinearizedKDStudent`. An unfitted one is cross-fitted within the folds, once
        for all candidates, so that no label reaches its own score: see Notes.
    teacher_weights : list of array-like of shape (n_teachers,), default=None
        Candidates for the weights of a list of teachers. None: equal weights.
    soft_ratios : sequence of float in (0, 1], default=(0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
        Candidates for the weight ρ of the soft labels. 0 may be among them where
        ``stopping_times`` are given, without None.
    temperatures : sequence of float > 0, default=(1.0, 2.0, 5.0)
        Candidates for the temperature T.
    ridges : sequence of float ≥ 0, default=(0.0,)
        Candidates for the ridge; each needs a factor per fold. To students that stop it is weight
        decay, as in :class:`LinearizedKDStudent`.
    stopping_times : sequence of float > 0 or None, default=None
        Candidates for the stopping time, learning rate × steps on the mean of Eq. 2, as in
        :class:`LinearizedKDStudent`; None among them is the converged student, as in
        ``[10, 100, 1000, None]``. By default all students converge. They are trained up to all
        times at once.
    kernel : callable, or list of them, default=None
        Tangent kernel, as in :class:`LinearizedKDStudent`. A list is searched too.
    temperature_scaling : {"none", "squared"}, default="none"
        As in :class:`LinearizedKDStudent`.
    init : {"auto", "zero", "network"}, default="auto"
        As in :class:`LinearizedKDStudent`.
    cv : int, splitter, iterable or None, default=None
        Folds, as `sklearn.model_selection.check_cv` reads them. None: leave-one-out in closed
        form, by distinct rows: exact copies of a row are left out together. With an unfitted
        teacher, which would be fitted once for each pair of rows, and for students that stop, which
        have no closed form, None is five stratified folds.
        Where validation rows are passed to ``fit`` they are scored, and ``cv`` must be None.
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
    teacher_method : {"auto", "decision_function", "predict_proba"}, default="auto"
        As in :class:`LinearizedKDStudent`.
    probability_floor : "auto" or float in (0, 1), default="auto"
        As in :class:`LinearizedKDStudent`.
    solver : {"auto", "cholesky", "pcg", "nystrom"} or solver, default="auto"
        A name, or an object of `sklearn_kd.solvers` with options of its own. "auto" and "cholesky"
        factor the kernel matrix. "pcg" finds the same students by conjugate gradients, one run for
        each fold, ridge and kernel, but needs folds (``cv``). "nystrom" restricts the students to
        the span of its landmarks. Leave-one-out (``cv=None``) then takes one pass over the rows for
        each kernel, and one for each ridge; folds take one for each fold and kernel, with landmarks
        among the rows it is trained on, and one for each ridge. The rows need not be in memory, but
        effective logits and predictions of all rows and candidates are. With all rows as landmarks
        it is the exact search. Students that stop need the kernel matrix: "auto" or "cholesky".
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
        Its ``soft_ratio``, ``temperature``, ``ridge`` and, where these are searched, ``kernel``,
        ``teacher_weights`` and ``stopping_time``.
    best_index_ : int
        Its position in ``cv_results_``.
    best_score_ : float
        Its mean held-out score.
    held_out_decision_function_ : ndarray of shape (n_samples,) or (n_samples, n_classes)
        Logits of the chosen cell on each row of ``X``, or of ``X_val``, by students that have not
        seen the row, in single precision; NaN where none was scored.
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
        than ten, but more than one. An unfitted teacher makes it five folds. With
        ``stopping_times`` there are ``mean_train_loss``, the mean of Eq. 2 over the rows that a
        student is trained on, with cross-entropies, and ``mean_train_accuracy``, on those with a
        label, both means over the folds; NaN for converged students. A real run that has reached
        the same loss is at that time.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    teacher_ : classifier, list of them, or None
        The fitted teacher, or teachers; None if ``teacher_logits`` stood in for it.
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
        If the kernel matrix and the factor of a fold, or a single student that stops, do not fit
        ``memory_limit``.
    ValueError
        If ``stopping_times`` meet a solver without a kernel matrix.
    NotPSDError
        If a kernel matrix is not positive definite, beyond rounding.

    See Also
    --------
    LinearizedKDStudent : One (ρ, T).

    Notes
    -----
    Ties go to the larger ρ, then to the smaller T, the larger ridge, the earlier time and the
    earlier kernel. Of equals the student that has moved least from its start is the more cautious
    one, whether a ridge held it back or it stopped, and an earlier end spares training.

    No label reaches its own score by way of an unfitted teacher. The student that is scored on fold
    k learns the rows of fold j from a clone that has seen neither j nor k. The clones without one
    fold give the teacher's logits on the held-out rows, as scores ask for them, and those that the
    best student learns. For K folds these are K(K−1)/2 + K fits and one on all rows, whatever the
    number of candidates. With ``teacher_cv`` the clones are those of
    :class:`~sklearn.model_selection.GridSearchCV` over ``LinearizedKDStudent(teacher,
    cv=teacher_cv)``, which fits them again for each candidate. Frozen teachers and given
    ``teacher_logits`` are taken as they are: logits that were fitted to ``y``, cross-fitted ones
    too, make the scores too good, the more so the larger ρ.

    A search of minutes begins with a LongFitWarning. With ``X_val`` every candidate is trained on
    all of ``X`` and scored on ``X_val``, as a whole and in groups as for leave-one-out. An unfitted
    teacher is cross-fitted on ``X`` as for a student alone, and has seen nothing of ``X_val``.

    Labels enter no factor. A second ``fit`` of the same search on the same rows, weights, ``NTK``
    kernels and ridges, as with corrected labels, takes over the factors of the first. Beside that
    of the best student, which holds it, they take up to ``cache_size`` bytes of
    :class:`~sklearn_kd.solvers.Cholesky` (by default a fifth of the free memory), and no more than
    ``memory_limit`` leaves. Students that stop take over the kernel matrix, and train anew. What is
    kept goes with the search and is not pickled; ``cache_size=0`` keeps nothing. Where folds have
    factors of their own (fewer than five folds, copies of rows) these serve the same folds only,
    and stratified folds follow the labels.

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
        "teacher": [TeacherConstraint(), None],
        "teacher_weights": ["array-like", None],
        "soft_ratios": ["array-like"],
        "temperatures": ["array-like"],
        "ridges": ["array-like"],
        "stopping_times": ["array-like", None],
        "kernel": [KernelConstraint(), list, tuple, None],
        "temperature_scaling": [StrOptions({"none", "squared"})],
        "init": [StrOptions({"auto", "zero", "network"})],
        "cv": ["cv_object", None],
        "scoring": [str, callable, list, tuple, dict, None],
        "refit": ["boolean", str],
        "one_standard_error": ["boolean"],
        "teacher_cv": ["cv_object", StrOptions({"prefit"}), None],
        "teacher_method": [StrOptions(set(METHODS))],
        "probability_floor": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="neither")],
        "solver": [StrOptions({"auto", "cholesky", "pcg", "nystrom"}), Cholesky, PCG, Nystrom],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        teacher: ClassifierMixin | list[ClassifierMixin] | None = None,
        *,
        teacher_weights: Any = None,
        soft_ratios: Any = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0),
        temperatures: Any = (1.0, 2.0, 5.0),
        ridges: Any = (0.0,),
        stopping_times: Any = None,
        kernel: Any = None,
        temperature_scaling: str = "none",
        init: str = "auto",
        cv: Any = None,
        scoring: Any = None,
        refit: bool | str = True,
        one_standard_error: bool = False,
        teacher_cv: Any = None,
        teacher_method: str = "auto",
        probability_floor: float | str = "auto",
        solver: str | Solver = "auto",
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
        n_jobs: int | None = None,
    ) -> None:
        self.teacher = teacher
        self.teacher_weights = teacher_weights
        self.soft_ratios = soft_ratios
        self.temperatures = temperatures
        self.ridges = ridges
        self.stopping_times = stopping_times
        self.kernel = kernel
        self.temperature_scaling = temperature_scaling
        self.init = init
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.one_standard_error = one_standard_error
        self.teacher_cv = teacher_cv
        self.teacher_method = teacher_method
        self.probability_floor = probability_floor
        self.solver = solver
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        teacher_logits: Any = None,
        teacher_trust: Any = None,
        classes: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        teacher_logits_val: Any = None,
    ) -> Self:
        """Score every candidate on held-out rows and fit the best one on all.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows. The teacher is given ``X`` as it is, a data frame too.
        y : array-like of shape (n_samples,)
            Hard labels, as in :class:`LinearizedKDStudent`. Rows without one are not scored.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights, of fits and scores. Rows of weight 0 are left out.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``; they replace the teacher. They must not come from ``y``:
            if they do, by cross-fitting too, the scores have seen the labels.
        teacher_trust : array-like of shape (n_samples,), default=None
            Share of the soft ratio with which each row is learnt, in (0, 1]. None is 1.
        classes : array-like of shape (n_classes,), default=None
            As in :class:`LinearizedKDStudent`.
        X_val : array-like of shape (n_validation, n_features), default=None
            Rows to score on instead of held-out rows of ``X``, with ``cv=None``. Nothing is trained
            on them, in the last fit neither.
        y_val : array-like of shape (n_validation,), default=None
            Their labels. Rows without one are not scored.
        sample_weight_val : array-like of shape (n_validation,), default=None
            Their weights in the scores.
        teacher_logits_val : array-like of shape (n_validation,) or (n_validation, n_classes)
            The teacher's logits on them, by default its own, for scores that ask for it.

        Returns
        -------
        self : LinearizedKDStudentCV
            The fitted search.
        """
        grid, solver = grid_of(self, teacher_logits), named_solver(self.solver)
        with fit_task(self, X, y, sample_weight) as progress:
            # 1. What serves every candidate: factors of folds, or sums over all rows.
            validation = Given(X_val, y_val, sample_weight_val, teacher_logits_val)
            validation.require_sound(self.cv)
            is_taught = teacher_logits is not None or is_fitted(self.teacher, self.teacher_cv)
            sees_labels = X_val is None and not is_taught
            hints = class_hints(self.teacher, self.teacher_cv, teacher_logits, classes)
            given = read_rows(self, X, y, sample_weight, teacher_trust, solver, hints)
            scored = read_validation(self, validation, given.checked.classes)
            n_scored = 0 if scored is None else len(scored.numbers)
            students = planned_search(self, grid, solver, sees_labels, given, n_scored)
            rows = students.setting.rows.checked

            # 2. The teacher's logits z_t on the training rows, once for all candidates. A teacher
            #    that sees the labels has others for each fold: no label reaches its own score.
            taught = taught_by(self, students, X, teacher_logits, progress)

            # 3. The scores of the students that have not seen the rows they are scored on.
            problem = problem_of(students.setting, taught, scored, teacher_logits_val)
            scores = FoldScores(self.scoring, problem)
            students.score(problem, scores, progress)

            # 4. The best candidate, fitted on all rows.
            results = scores.cv_results(grid) | students.training
            best = select(self, grid, scores, results)
            if self.refit:
                best |= fit_best(self, students, problem, best["best_index_"], progress)
            if students.kept is not None:
                best_student = best.get("best_estimator_")
                students.kept.close(best_student and best_student._frame)
            for name in _OF_THE_BEST:
                self.__dict__.pop(name, None)
            self.__dict__.update(
                classes_=rows.classes,
                teacher_=taught.teacher,
                scorer_=scores.scorer,
                n_splits_=scores.n_splits,
                cv_results_=results,
                _kept_factors=students.kept,
                **best,
            )
        return self

    for_network = classmethod(for_network)
    rows_to_check = rows_to_check

    def _check_new_rows(self, X: Any, method: str) -> Any:
        check_is_fitted(self)
        if not hasattr(self, "best_estimator_"):
            raise AttributeError(f"{method} needs the best student; set refit=True and fit again.")
        return check_new_rows(self, X, method)

    def __getstate__(self) -> dict:
        """Return the state without the factors that are kept for a next fit."""
        state = super().__getstate__().copy()
        state.pop("_kept_factors", None)
        return state

    def _logits(self, X: Any) -> Tensor:
        return self.best_estimator_._logits(X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags
