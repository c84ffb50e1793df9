"""The student: a wide network trained on soft and hard labels, in closed form or up to a time.

Symbols (paper -> code -> shape), with n distinct rows and K classes (no K axis for two):

=======  =======================  ============
z_t      ``teacher_logits_``      (n_samples,) or (n_samples, K)
z_eff    ``effective_logits_``    (n,) or (n, K)
z₀       ``initial_logits_``      (n,) or (n, K)
Θ_n⁻¹Δz  ``dual_coef_``           (n,) or (n, K)
‖Δ_ŵ‖    ``weight_change_norm_``  scalar
=======  =======================  ============
"""

from __future__ import annotations

import functools
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from sklearn.base import ClassifierMixin, clone
from torch import Tensor

from sklearn_kd._array import like
from sklearn_kd._kernel_machine import PreparedKernel, TangentKernelClassifier
from sklearn_kd._progress import fit_task
from sklearn_kd._sklearn import Interval, StrOptions, fit_context
from sklearn_kd.distillation._effective_logits_of_rows import (
    mixed_logits,
)
from sklearn_kd.solvers._choice import CONSTRAINT, TakesSolver
from sklearn_kd.solvers._system import Solution, Solver, require_finite
from sklearn_kd.students._initial_network import initial_logits
from sklearn_kd.students._on_frame import StudentOnFrame
from sklearn_kd.students._posed import PosedStudent, pose, report_of
from sklearn_kd.students._prefix_path import prefix_path
from sklearn_kd.students._stopped import staged_decision_function, train
from sklearn_kd.teachers._constraint import TeacherConstraint
from sklearn_kd.teachers._logits_of import METHODS


class LinearizedKDStudent(TakesSolver, StudentOnFrame):
    """Student of knowledge distillation, linearized: the closed form of a wide network.

    The student minimises ρ H(σ(z_t/T), σ(z/T)) + (1 − ρ) H(y, σ(z)) on every training row (Eq. 2).
    In the wide-network limit it reaches, on each row, the effective logit z_eff at which the
    gradient of that loss vanishes (Eq. 3), and between the rows it is
    f(x) = z₀(x) + Θ(x, X) Θ(X, X)⁻¹ (z_eff − z₀) (Eq. 4), Θ the neural tangent kernel and z₀ the
    network before training. It is a kernel surrogate of a wide network, not a network.

    Parameters
    ----------
    teacher : classifier or list of them, default=None
        Any scikit-learn classifier with ``predict_proba``, or log-odds. Unfitted: a
        clone's logits on the training rows come from cross-fitting (``cv``), so that the teacher
        does not hand its own training labels back; then ``teacher_`` is fitted on all rows. A
        ``FrozenEstimator`` or :class:`TorchTeacher` is used as it is. None means ``NTKTeacher``
        with the same kernel. Not needed where ``teacher_logits`` is passed to ``fit``. A list of
        classifiers teaches by the weighted mean of their soft labels.
    teacher_weights : array-like of shape (n_teachers,), default=None
        Weights of a list of teachers, at least 0; they are made to sum to one. None: equal.
    kernel : callable, default=None
        Tangent kernel: `sklearn_kd.kernels.NTK`, any Gaussian-process kernel of scikit-learn, or
        a callable ``kernel(X, Y)`` that returns a positive definite (n, m) array. None: ``NTK()``.
    soft_ratio : float in (0, 1], default=0.9
        Weight ρ of the soft labels; 1 − ρ is that of the hard labels. It may be 0 with a
        ``stopping_time``.
    temperature : float > 0, default=2.0
        Temperature T that divides the logits in the soft term.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss; "squared" multiplies the soft term by T², as Hinton et al.
        (2015) do.
    ridge : float ≥ 0, default=0.0
        Ridge λ, as in :class:`~sklearn.kernel_ridge.KernelRidge`; 0 is the converged student. It is
        not the weight of the soft labels: that is ``soft_ratio``. With a ``stopping_time`` it is
        weight decay: see Notes.
    init : {"auto", "zero", "network"}, default="auto"
        The student's start, z₀. "zero": the mean over initialisations of an infinitely wide
        network. "network": the module of an :class:`~sklearn_kd.kernels.EmpiricalNTK`,
        with its outputs at its current weights, one per class in the order of ``classes_``; for
        two classes one, or one each. "auto": "network" where ``kernel`` has one.
    stopping_time : float > 0, increasing sequence of them, or None, default=None
        Learning rate × steps of gradient descent on the mean of Eq. 2, from z₀ on: the student that
        stopped there. The last of a sequence is used to predict, all of them by
        ``staged_decision_function``. None is the converged student (Eq. 4).
        :func:`~sklearn_kd.training.stopping_time_of` gives that of a real run.
    cv : int, splitter, iterable or "prefit", default=5
        Cross-fitting of an unfitted teacher, as `sklearn.model_selection.check_cv` reads it.
        "prefit" takes ``teacher`` as already fitted. The clones are fitted side by side within
        ``with joblib.parallel_config(n_jobs=4)``.
    teacher_method : {"auto", "decision_function", "predict_proba"}, default="auto"
        Where logits come from. "auto": ``decision_function`` where its softmax is
        ``predict_proba``, else the latter; a teacher with scores alone (SVC, RidgeClassifier) is
        refused. "decision_function" takes scores for log-odds on your word.
    probability_floor : "auto" or float in (0, 1), default="auto"
        The probability that lower ones of ``predict_proba`` are lifted to. "auto": 1/n for a
        teacher fitted on n rows here. For one that is fitted already, whose n is unknown, only
        zeros are lifted, to 1/n of the rows at hand, or the next probability of the row if lower.
    solver : {"auto", "cholesky", "refinement", "pcg", "nystrom"} or solver, default="auto"
        How Eq. 4 is solved: a name, or an object of `sklearn_kd.solvers` with options of its own.
        :class:`~sklearn_kd.solvers.Cholesky` factors the kernel matrix of all rows.
        :class:`~sklearn_kd.solvers.Refinement` factors it in float32, half the bytes, and iterates
        in float64. :class:`~sklearn_kd.solvers.PCG` needs no factor.
        :class:`~sklearn_kd.solvers.Nystrom` restricts the student to the span of a few rows, and
        reads rows that need not be in memory. "auto" is "cholesky", or "refinement", with a
        warning, where only that fits; it never approximates.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is CUDA where available, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Working precision. "auto" is float64 whatever the dtype of ``X``.
    memory_limit : "auto" or float, default="auto"
        Bytes that a fit may take; "auto" is 90 % of what is free, by worker of a joblib pool.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    teacher_ : classifier, list of them, or None
        The fitted teacher, or teachers; None if ``teacher_logits`` stood in for it.
    teacher_logits_ : ndarray of shape (n_samples,) or (n_samples, n_classes)
        The teacher's logits on the rows of ``X``, summing to zero over three or more classes.
        Of several teachers: those of the one that has their mean soft labels at ``temperature``.
    effective_logits_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes), or None
        Effective logits z_eff (Eq. 3) of the distinct training rows, in order of appearance; None
        with ``soft_ratio=0``.
    initial_logits_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes)
        Logits before training, z₀, on the same rows.
    dual_coef_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes)
        Coefficients of the kernel expansion (Eq. 4), in the order of ``X_fit_``.
    staged_dual_coef_ : ndarray of shape (n_times, n_distinct) or (n_times, n_distinct, n_classes)
        The same at each stopping time; None without ``stopping_time``.
    X_fit_ : ndarray of shape (n_distinct, n_features)
        The rows of the kernel expansion: the distinct training rows of positive weight, in order
        of appearance, or the (n_landmarks, n_features) landmarks of ``solver="nystrom"``.
    kernel_ : callable
        The kernel that was used.
    weight_change_norm_ : float
        ‖Δ_ŵ‖₂, the distance the weights moved; squares are summed over the classes.
    jitter_ : float
        What was added to the kernel's diagonal for its factorization; 0 almost always.
    rcond_ : float
        Estimated reciprocal condition number of the matrix that was solved with; NaN where there is
        none.
    solver_ : solver
        The solver that was used, an object of `sklearn_kd.solvers`.
    n_iter_ : int
        Iterations of the solver; 1 for those that do not iterate.
    fit_report_ : Bunch
        ``n_rows``, ``n_distinct_rows``, ``n_merged_rows``, ``n_zero_weight_rows``,
        ``n_unlabelled_rows``, ``teacher_method`` (that logits came from), ``probability_floor``
        (None for log-odds), ``n_clipped_teacher_rows`` (rows with a probability below it, which was
        lifted), ``cross_fitted_teacher`` (whether ``teacher`` was unfitted), ``soft_ratio``,
        ``temperature``, ``temperature_scaling``, ``teacher_weights`` (which sum to one), ``init``,
        ``ridge``, ``noise`` (the kernel's own, which adds to the ridge), ``jitter``, ``rcond``,
        ``solver``, ``device`` and ``dtype``, and what the solver adds: see the notes of each in
        `sklearn_kd.solvers`. With ``stopping_time``, a list, there are ``training_loss``, the mean
        of Eq. 2 at each time, with cross-entropies; ``training_accuracy``, on the rows with a
        label; ``n_kernel_products``.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if they are strings.

    Raises
    ------
    ValueError
        If ``init="network"`` and ``kernel`` has no network, or one without an output per class; if
        ``soft_ratio=0`` without a ``stopping_time``, or a ``stopping_time`` with a solver that has
        no kernel matrix.
    MemoryBudgetError
        If the kernel matrix does not fit ``memory_limit``.
    NotPSDError
        If the kernel matrix is not positive definite, beyond rounding.

    Warns
    -----
    ConvergenceWarning, SinglePrecisionWarning
        If an iteration did not reach ``tol``; if ``solver="auto"`` chose "refinement".
    LongFitWarning
        Before its work begins, if the fit will take minutes without its teacher.
    SaturatedTeacherWarning
        If the teacher's probabilities of 0 were lifted, or given logits are that sure.
    UserWarning
        If the teacher is fitted but not frozen, its ``predict`` says otherwise, ``sample_weight``
        does not reach it, or it is certain and right on 50 rows or more: all of those at hand.
    IllConditionedWarning
        If rounding decides part of the answer.
    UnscaledFeaturesWarning
        If a column's standard deviation and range are over 300 times another one's. Not looked for
        in rows that are streamed, nor with a callable, an `EmpiricalNTK` or a scale by column.

    Notes
    -----
    Rows that repeat exactly are merged, exactly: the loss is linear in the labels, so the
    converged student sees one row with the weighted mean of the copies' hard and soft labels.
    With ``ridge=0`` sample weights therefore matter only where rows repeat.

    Several teachers are one: a weighted sum of cross-entropies is the cross-entropy to the weighted
    mean of the soft labels. That mean depends on ``temperature``, and so do ``teacher_logits_``.

    Rows without a label are learnt from the teacher alone (ρ = 1), and ``score`` does not count
    them. An unfitted teacher is fitted to the others. -1 is a class if ``y`` has two values only,
    if a fitted teacher knows it, or if ``teacher_logits`` have a column for it.

    With a ``stopping_time`` the weights follow the gradient of the mean over the rows of Eq. 2
    plus λ/(2 Σ w) ‖w − w₀‖², ridge λ and row weights w: weight decay towards the start. At late
    times that is the minimum of Eq. 2 with this penalty. It is the student of the closed form for
    λ = 0; for λ > 0 that one is kernel ridge regression on z_eff instead.

    A kernel may hold noise, ``RBF() + WhiteKernel(s)``: what it adds to the diagonal of the kernel
    matrix of the training rows, and of no other. The student is then that of ``RBF()`` with the
    ridge ``ridge + s``, in all that it reports.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_kd import LinearizedKDStudent
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = StandardScaler().fit_transform(X)
    >>> student = LinearizedKDStudent(LogisticRegression(), soft_ratio=0.7, temperature=2.0)
    >>> student.fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.95
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **TangentKernelClassifier._parameter_constraints,
        "teacher": [TeacherConstraint(), None],
        "teacher_weights": ["array-like", None],
        "soft_ratio": [Interval(Real, 0, 1, closed="both")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "temperature_scaling": [StrOptions({"none", "squared"})],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "init": [StrOptions({"auto", "zero", "network"})],
        "stopping_time": [Interval(Real, 0, None, closed="neither"), "array-like", None],
        "cv": ["cv_object", StrOptions({"prefit"})],
        "teacher_method": [StrOptions(set(METHODS))],
        "probability_floor": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="neither")],
        "solver": CONSTRAINT,
    }

    def __init__(
        self,
        teacher: ClassifierMixin | list[ClassifierMixin] | None = None,
        *,
        teacher_weights: Any = None,
        kernel: Any = None,
        soft_ratio: float = 0.9,
        temperature: float = 2.0,
        temperature_scaling: str = "none",
        ridge: float = 0.0,
        init: str = "auto",
        stopping_time: Any = None,
        cv: Any = 5,
        teacher_method: str = "auto",
        probability_floor: float | str = "auto",
        solver: str | Solver = "auto",
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
    ) -> None:
        self.teacher = teacher
        self.teacher_weights = teacher_weights
        self.kernel = kernel
        self.soft_ratio = soft_ratio
        self.temperature = temperature
        self.temperature_scaling = temperature_scaling
        self.ridge = ridge
        self.init = init
        self.stopping_time = stopping_time
        self.cv = cv
        self.teacher_method = teacher_method
        self.probability_floor = probability_floor
        self.solver = solver
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit

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
    ) -> Self:
        """Fit the student to the teacher and the labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), dask array or path of a folder
            Training rows. The teacher is given ``X`` as it is, a data frame too. With
            ``solver="nystrom"`` the rows of a memory map, a dask array or a folder of ``.npy`` or
            ``.npz`` files (array ``X``), in the order of their names, are read block by block.
        y : array-like of shape (n_samples,)
            Hard labels: integers or strings; -1, or a missing string, for none: see Notes.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights, as :class:`~sklearn.kernel_ridge.KernelRidge` treats them; also passed to
            the teacher's ``fit`` where that takes them, by metadata routing in pipelines and
            searches. Rows of weight 0 are left out, by the teacher too.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``, in the order of the sorted classes, or a data frame with
            columns named after them; for two classes one log-odds per row, or one column per class.
            They replace the teacher.
        teacher_trust : array-like of shape (n_samples,), default=None
            Share of ``soft_ratio`` with which each row is learnt, in (0, 1]. None is 1. Rows
            without a label take no notice of it.
        classes : array-like of shape (n_classes,), default=None
            The classes, sorted, where ``y`` may lack some that ``teacher_logits`` have. A fitted
            teacher's are its own.

        Returns
        -------
        self : LinearizedKDStudent
            The fitted student.
        """
        with fit_task(self, X, y, sample_weight) as progress:
            # The logits to reach, z_eff (Eq. 3), from the teacher's z_t and the labels.
            posed = pose(
                self, X, y, sample_weight, teacher_logits, teacher_trust, classes, progress
            )
            if posed.stopping_times is None:
                # The converged student, (Θ_n + λ W⁻¹) a = Δz with Δz = z_eff − z₀ (Eq. 4).
                solution = posed.solver.solve(posed.system, self.memory_limit, progress)
            else:
                # The student that stops, da/dt ∝ −∂/∂f of Eq. 2 at f = z₀ + Θ_n a, from a = 0 on.
                solution = train(posed, progress)
            self._adopt(posed, solution)
        return self

    def _adopt(self, posed: PosedStudent, solution: Solution) -> None:
        """Become the student that was posed and solved, with all attributes at once."""
        require_finite(solution)
        rows, distinct, _ = posed.rows
        members = posed.taught.logits.values
        own = functools.partial(like, reference=rows.array, copy=True)
        z_eff, stages = posed.effective_logits, solution.stages
        self.__dict__.update(
            classes_=rows.classes,
            teacher_=posed.taught.teacher,
            teacher_logits_=own(mixed_logits(members, posed.recipe)),
            effective_logits_=None if z_eff is None else own(z_eff),
            initial_logits_=own(posed.initial_logits),
            kernel_=posed.kernel,
            dual_coef_=own(solution.dual_coef),
            staged_dual_coef_=None if stages is None else own(stages),
            X_fit_=own(solution.X_fit),
            weight_change_norm_=solution.weight_change_norm,
            jitter_=solution.jitter,
            rcond_=solution.rcond,
            solver_=clone(posed.solver),
            n_iter_=solution.n_iter,
            fit_report_=report_of(posed, solution),
            _readings=posed.taught.readings,
            _distinct=distinct.to_host(),
            _frame=solution.frame,
            _prepared=PreparedKernel(posed.kernel, posed.function),
            # A mixture is another one at each temperature.
            _members=own(members) if len(members) > 1 else None,
        )

    prefix_path = prefix_path
    staged_decision_function = staged_decision_function

    def _initial_logits(self, X: Tensor) -> Tensor | None:
        """Return z₀ of any rows; None is zero."""
        if self.fit_report_.init == "zero":
            return None
        function, n_classes = self._kernel_function(), len(self.classes_)
        return initial_logits(self.fit_report_.init, self.kernel_, function, X, n_classes)

    def _expansion_in_memory(self, X: Tensor, coefficients: Tensor) -> Tensor:
        """Return z₀(x) + Θ(x, X_fit) a."""
        change = super()._expansion_in_memory(X, coefficients)
        z_0 = self._initial_logits(X)
        if z_0 is None:
            return change
        return change + (z_0[:, None] if change.ndim > z_0.ndim else z_0)  # one for all stages
