"""The student: a wide network trained to convergence on soft and hard labels, in closed form.

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

import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._array import like, to_tensor
from sklearn_kd._kernel_machine import TangentKernelClassifier, kernel_to_use
from sklearn_kd._logits import n_logits
from sklearn_kd._progress import FitTask, fit_task
from sklearn_kd._sklearn import HasMethods, Interval, StrOptions, fit_context
from sklearn_kd.distillation._targets import RECIPE, merged_effective_logits
from sklearn_kd.kernels._tiles import product
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.rows._checking import check_rows, check_streamed_rows
from sklearn_kd.rows._streams import RowStream, is_streamed
from sklearn_kd.rows._training_rows import (
    DistinctRows,
    TrainingRows,
    distinct_of_stream,
    distinct_rows,
    rows_report,
)
from sklearn_kd.solvers._choice import (
    SOLVERS,
    Options,
    Size,
    Solution,
    System,
    choose_solver,
    solution_of,
)
from sklearn_kd.solvers._frame_cache import frames
from sklearn_kd.students._initial_network import initial_logits
from sklearn_kd.students._prefix_path import PrefixPathMixin
from sklearn_kd.teachers._teaching import TaughtMixin


class LinearizedKDStudent(TaughtMixin, PrefixPathMixin, TangentKernelClassifier):
    """Student of knowledge distillation, linearized: the closed form of a wide network.

    The student minimises ρ H(σ(z_t/T), σ(z/T)) + (1 − ρ) H(y, σ(z)) on every training row (Eq. 2).
    In the wide-network limit it reaches, on each row, the effective logit z_eff at which the
    gradient of that loss vanishes (Eq. 3), and between the rows it is
    f(x) = z₀(x) + Θ(x, X) Θ(X, X)⁻¹ (z_eff − z₀) (Eq. 4), Θ the neural tangent kernel and z₀ the
    network before training. It is a kernel surrogate of a wide network, not a network.

    Parameters
    ----------
    teacher : classifier, default=None
        Any scikit-learn classifier with ``decision_function`` or ``predict_proba``. Unfitted: a
        clone's logits on the training rows come from cross-fitting (``cv``), so that the teacher
        does not hand its own training labels back; then ``teacher_`` is fitted on all rows. A
        ``FrozenEstimator`` or :class:`TorchTeacher` is used as it is. None means ``NTKTeacher``
        with the same kernel. Not needed where ``teacher_logits`` is passed to ``fit``.
    kernel : callable, default=None
        Tangent kernel: `sklearn_kd.kernels.NTK`, any Gaussian-process kernel of scikit-learn, or
        a callable ``kernel(X, Y)`` that returns a positive definite (n, m) array. None: ``NTK()``.
    soft_ratio : float in (0, 1], default=0.9
        Weight ρ of the soft labels; 1 − ρ is that of the hard labels.
    temperature : float > 0, default=2.0
        Temperature T that divides the logits in the soft term.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss; "squared" multiplies the soft term by T², as Hinton et al.
        (2015) do.
    ridge : float ≥ 0, default=0.0
        Ridge, as in :class:`~sklearn.kernel_ridge.KernelRidge`; 0 is the converged student.
    init : {"zero", "network"}, default="zero"
        What the student starts from, z₀. "zero": a network without output, such as the mean over
        initialisations. "network": the module of an :class:`~sklearn_kd.kernels.EmpiricalNTK`,
        with its outputs at its current weights, one per class in the order of ``classes_``; for
        two classes one, or one each.
    cv : int, splitter, iterable or "prefit", default=5
        Cross-fitting of an unfitted teacher, as `sklearn.model_selection.check_cv` reads it.
        "prefit" takes ``teacher`` as already fitted.
    solver : {"auto", "cholesky", "refinement", "pcg", "nystrom"}, default="auto"
        How Eq. 4 is solved. "cholesky" factors the kernel matrix of all rows. "refinement" factors
        it in float32, half the bytes, and iterates to a residual of ``tol`` in float64. "pcg" does
        so without a factor, by preconditioned conjugate gradients; it keeps the kernel matrix where
        that fits, and otherwise evaluates it at every iteration. "nystrom" restricts
        the student to the span of ``n_landmarks`` rows, its landmarks, and passes once over the
        rows, which need not be in memory. "auto" is "cholesky", or "refinement", with a
        warning, where only that fits; it never approximates.
    tol : float, default=1e-6
        Where "pcg" and "refinement" stop: the largest norm of z_eff − z₀ − (Θ + α W⁻¹) a of any
        class, relative to that of z_eff − z₀. At ``ridge=0`` it is that of the logits' errors on
        the training rows.
    max_iter : int, default=500
        Largest number of iterations of "pcg" and "refinement".
    distributed : bool, default=False
        Whether the processes of `torch.distributed`, one per machine or GPU and started by
        ``torchrun``, share the work of ``solver="pcg"``. Each of them makes the same fit, with all
        rows, and ends with the same student.
    n_landmarks : int, default=1000
        Number of landmarks of ``solver="nystrom"``. With all rows as landmarks it is the exact
        student.
    landmarks : {"rpcholesky", "uniform"}, default="rpcholesky"
        How ``solver="nystrom"`` chooses its landmarks among ten times as many rows drawn at random:
        by randomly pivoted Cholesky, or uniformly.
    random_state : int, RandomState or None, default=None
        Draws the landmarks of ``solver="nystrom"``, or the preconditioner of ``solver="pcg"``.
    n_jobs : int, default=None
        Workers, of any :mod:`joblib` backend, that pass over the rows with ``solver="nystrom"``.
        None is 1 outside of a `joblib.parallel_config`; -1 is all processors.
    checkpoint : str or path, default=None
        File to which ``solver="nystrom"`` writes about once a minute what it knows of the rows
        so far. After an interruption the same ``fit`` goes on from there; at the end the file is
        removed.
    device : str or torch.device, default="auto"
        Where to compute. "auto" is CUDA where available, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Working precision. "auto" is float64 whatever the dtype of ``X``.
    memory_limit : "auto" or float, default="auto"
        Bytes that the fit may take; "auto" is 90 % of what is free.
    cache_size : "auto" or float, default="auto"
        Bytes of memory for what later fits on the same rows, with the same ``NTK`` kernel,
        ``ridge``, dtype and device, take over: in a search, the factors of the other candidates,
        and their kernel entries between training and test rows. They are kept in the process from
        the second request on, the least recently used goes first, and results are the same bit
        for bit. "auto" is a fifth of what is free; 0 keeps none.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    teacher_ : classifier or None
        The fitted teacher; None if ``teacher_logits`` stood in for it.
    teacher_logits_ : ndarray of shape (n_samples,) or (n_samples, n_classes)
        The teacher's logits on the rows of ``X``, summing to zero over three or more classes.
    effective_logits_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes)
        Effective logits z_eff (Eq. 3) of the distinct training rows, in order of appearance.
    initial_logits_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes)
        What the student said before training, z₀, on the same rows.
    dual_coef_ : ndarray of shape (n_distinct,) or (n_distinct, n_classes)
        Coefficients of the kernel expansion (Eq. 4), in the order of ``X_fit_``.
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
    solver_ : str
        The solver that was used.
    n_iter_ : int
        Iterations of the solver; 1 for those that do not iterate.
    fit_report_ : Bunch
        ``n_rows``, ``n_distinct_rows``, ``n_merged_rows``, ``n_zero_weight_rows``,
        ``n_clipped_teacher_rows`` (rows whose teacher probabilities of 0 were clipped), ``init``,
        ``ridge``, ``jitter``, ``rcond``, ``solver``, ``device`` and ``dtype``. Of "nystrom" also
        ``n_landmarks``, ``captured_trace`` (share of the trace of Θ that the landmarks explain; 1
        is exact), ``fit_gap`` and ``held_out_gap`` (root mean squares over up to 1000 training rows
        of z_eff − f, f the student, or the one trained on all rows but that one),
        ``resumed_at_row`` and ``planned_bytes``. Of "pcg" and "refinement" ``residual`` (the
        largest of any class), ``energy_error`` (estimate of ‖f − f_exact‖, the largest of any
        class: every logit is within ``energy_error`` · √Θ(x, x) of the exact one),
        ``prediction_error`` (that bound on the training rows), ``stopped`` (why), ``n_products``,
        ``n_solved``, ``products`` (with what), and ``preconditioner_rank`` and ``planned_bytes``,
        or ``factor_jitter`` and ``factor_rcond``, of the factor in float32.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Feature names, where ``X`` has string names.

    Raises
    ------
    ValueError
        If ``init="network"`` and ``kernel`` has no network, or one without an output per class.
    MemoryBudgetError
        If the kernel matrix does not fit ``memory_limit``.
    NotPSDError
        If the kernel matrix is not positive definite, beyond rounding.

    Warns
    -----
    ConvergenceWarning
        If "pcg" or "refinement" did not reach ``tol``.
    SinglePrecisionWarning
        If ``solver="auto"`` chose "refinement".
    SaturatedTeacherWarning
        If the teacher's probabilities of exactly 0 were clipped.
    IllConditionedWarning
        If rounding decides part of the answer.

    Notes
    -----
    Rows that repeat exactly are merged, exactly: the loss is linear in the labels, so the
    converged student sees one row with the weighted mean of the copies' hard and soft labels.
    With ``ridge=0`` sample weights therefore matter only where rows repeat.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks: Risk Bound, Data Efficiency
    and Imperfect Teacher", NeurIPS 2020.

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

    # From the search that has this student refitted: the frame of all training rows, or more.
    _frame_at_hand: TangentFrame | None = None
    _solution_at_hand: Solution | None = None

    _parameter_constraints: ClassVar[dict] = {
        **TangentKernelClassifier._parameter_constraints,
        "teacher": [HasMethods(["fit", "predict"]), None],
        "soft_ratio": [Interval(Real, 0, 1, closed="right")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "temperature_scaling": [StrOptions({"none", "squared"})],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "init": [StrOptions({"zero", "network"})],
        "cv": ["cv_object", StrOptions({"prefit"})],
        "solver": [StrOptions({"auto", *SOLVERS})],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "distributed": ["boolean"],
        "n_landmarks": [Interval(Integral, 1, None, closed="left")],
        "landmarks": [StrOptions({"rpcholesky", "uniform"})],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "checkpoint": [str, os.PathLike, None],
        "cache_size": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        teacher: ClassifierMixin | None = None,
        *,
        kernel: Any = None,
        soft_ratio: float = 0.9,
        temperature: float = 2.0,
        temperature_scaling: str = "none",
        ridge: float = 0.0,
        init: str = "zero",
        cv: Any = 5,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 500,
        distributed: bool = False,
        n_landmarks: int = 1000,
        landmarks: str = "rpcholesky",
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        checkpoint: str | os.PathLike | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        memory_limit: float | str = "auto",
        cache_size: float | str = "auto",
    ) -> None:
        self.teacher = teacher
        self.kernel = kernel
        self.soft_ratio = soft_ratio
        self.temperature = temperature
        self.temperature_scaling = temperature_scaling
        self.ridge = ridge
        self.init = init
        self.cv = cv
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.distributed = distributed
        self.n_landmarks = n_landmarks
        self.landmarks = landmarks
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.memory_limit = memory_limit
        self.cache_size = cache_size

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any, teacher_logits: Any = None, sample_weight: Any = None) -> Self:
        """Fit the student to the teacher and the labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), dask array or path of a folder
            Training rows. The teacher is given ``X`` as it is, a data frame too. With
            ``solver="nystrom"`` the rows of a memory map, a dask array or a folder of ``.npy`` or
            ``.npz`` files (array ``X``), in the order of their names, are read block by block.
        y : array-like of shape (n_samples,)
            Hard labels: integers or strings.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``, in the order of the sorted classes; for two classes one
            log-odds per row, or one column per class. They replace the teacher.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights, as :class:`~sklearn.kernel_ridge.KernelRidge` treats them; also passed to
            the teacher's ``fit`` where that takes them. Rows of weight 0 are left out.

        Returns
        -------
        self : LinearizedKDStudent
            The fitted student.
        """
        self.__dict__.pop("_frame", None)  # frees the n² factor of an earlier fit
        with fit_task(self, X, y, sample_weight, n_stages=4) as progress:
            rows = self._check_rows(X, y, sample_weight)
            distinct, distinct_X = self._distinct_rows(rows)
            solver = self._solver_to_use(distinct_X, distinct.weights, len(rows.classes))

            # 1. The logits z₀ of the network before training.
            self.kernel_ = kernel_to_use(self.kernel)
            kernel, n_classes = self._kernel_function(), len(rows.classes)
            z_0 = initial_logits(
                self.init, self.kernel_, kernel, distinct_X, n_classes, distinct.weights
            )

            # 2. The teacher's logits z_t on the training rows.
            self.teacher_, z_t = self._teach(X, rows, teacher_logits, progress)
            self._warn_if_saturated(z_t)

            # 3. The logits at which the distillation loss is stationary, z_eff (Eq. 3).
            z_eff = merged_effective_logits(z_t.values, distinct, self._recipe())

            # 4. The converged student, a = (Θ_n + α W⁻¹)⁻¹ Δz with Δz = z_eff − z₀ (Eq. 4).
            system = System(kernel, distinct_X, distinct.weights, z_eff - z_0, self.ridge)
            student = self._solve(solver, system, progress)

            self.classes_ = rows.classes
            self.teacher_logits_ = like(z_t.values, rows.array)
            self.effective_logits_ = like(z_eff, rows.array)
            self.initial_logits_ = like(z_0, rows.array)
            self.dual_coef_ = like(student.dual_coef, rows.array)
            self.X_fit_ = like(student.X_fit, rows.array)
            self.weight_change_norm_ = student.weight_change_norm
            self.jitter_ = student.jitter
            self.rcond_ = student.rcond
            self.solver_ = solver
            self.n_iter_ = student.n_iter
            self.fit_report_ = Bunch(
                **rows_report(rows, distinct),
                n_clipped_teacher_rows=z_t.n_clipped,
                init=self.init,
                ridge=self.ridge,
                jitter=student.jitter,
                rcond=student.rcond,
                solver=solver,
                **student.report,
            )
            self._distinct = distinct.to_host()
            if student.frame is not None:
                self._frame = student.frame
        return self

    def _check_rows(self, X: Any, y: Any, sample_weight: Any) -> TrainingRows:
        if self.solver in SOLVERS and SOLVERS[self.solver].takes_streams and is_streamed(X):
            return check_streamed_rows(self, X, y, sample_weight)
        if isinstance(X, str | Path):
            raise ValueError(
                f"X={str(X)!r} is a folder of rows, which solver={self.solver!r} cannot read; use "
                "solver='nystrom', or pass the rows."
            )
        return check_rows(self, X, y, sample_weight)

    def _distinct_rows(self, rows: TrainingRows) -> tuple[DistinctRows, Tensor | RowStream]:
        """Return the rows with exact copies merged, and where their X is."""
        if rows.stream is not None:
            return distinct_of_stream(rows)
        distinct = distinct_rows(rows)
        return distinct, distinct.X

    def _recipe(self) -> dict[str, Any]:
        """Return the parameters that only the effective logits depend on."""
        return {name: getattr(self, name) for name in RECIPE}

    def _options(self) -> Options:
        """Return the parameters that solvers read."""
        return Options(**{name: getattr(self, name) for name in Options._fields})

    def _solver_to_use(self, X: Tensor | RowStream, weights: Tensor, n_classes: int) -> str:
        """Return the solver's name, before anything slow or large if it will not fit."""
        if self._frame_at_hand is not None:
            return "cholesky"
        if self._solution_at_hand is not None:
            return self.solver
        size = Size(len(X), X.shape[1], n_logits(n_classes), weights.dtype, weights.device)
        what = f"LinearizedKDStudent.fit on n={len(X)} distinct rows"
        return choose_solver(self.solver, size, self._options(), what=what)

    def _solve(self, solver: str, system: System, progress: FitTask) -> Solution:
        """Return the student's solution; what is at hand is used once."""
        frame, self._frame_at_hand = self._frame_at_hand, None
        solution, self._solution_at_hand = self._solution_at_hand, None
        if frame is not None:
            frame.kernel = system.kernel
            with progress.stage("kernel-and-factor"):
                pass
            with progress.stage("solve"):
                solution = solution_of(frame, system.targets)
        if solution is not None:
            return solution
        return SOLVERS[solver].solve(system, self._options(), progress)

    def _build_frame(self, X: Tensor, weights: Tensor, ridge: float) -> TangentFrame:
        return frames.frame(
            self._kernel_function(),
            X,
            ridge=ridge,
            weights=weights,
            memory_limit=self.memory_limit,
            cache_size=self.cache_size,
        )

    def _kernel_product(self, X: Tensor, fitted: Tensor, columns: Tensor) -> Tensor:
        kept = frames.cross_blocks(getattr(self, "_frame", None), X, cache_size=self.cache_size)
        if kept is None:
            return super()._kernel_product(X, fitted, columns)
        return product(kept, len(X), columns)

    @property
    def frame_(self) -> TangentFrame:
        """The tangent frame of the training rows; rebuilt where it is missing.

        It is after unpickling, which drops it, and after solvers that do without.
        """
        self._require_all_rows("frame_")
        if not hasattr(self, "_frame"):
            self._frame = self._build_frame(
                self._to_working(self.X_fit_),
                self._to_working(self._distinct.weights),
                self.fit_report_.ridge,
            )
        return self._frame

    def _require_all_rows(self, what: str) -> None:
        """Raise where the kernel expansion is not one of all training rows."""
        check_is_fitted(self)
        if self.solver_ == "nystrom":
            raise AttributeError(
                f"{what} needs the tangent frame of all training rows, which a student fitted with "
                "solver='nystrom' does not have; fit one with solver='auto', on fewer rows if "
                "these do not fit."
            )

    def _initial_logits(self, X: Tensor) -> Tensor | None:
        """Return z₀ of any rows; None is zero."""
        if self.fit_report_.init == "zero":
            return None
        function, n_classes = self._kernel_function(), len(self.classes_)
        return initial_logits(self.fit_report_.init, self.kernel_, function, X, n_classes)

    def _logit_change(self) -> Tensor:
        """Return Δz = z_eff − z₀ on ``X_fit_``."""
        z_eff, z_0 = map(self._to_working, (self.effective_logits_, self.initial_logits_))
        return z_eff - z_0

    def _expansion_in_memory(self, X: Tensor, fitted: Tensor, coefficients: Tensor) -> Tensor:
        """Return z₀(x) + Θ(x, X_fit) a."""
        change = super()._expansion_in_memory(X, fitted, coefficients)
        z_0 = self._initial_logits(X)
        return change if z_0 is None else z_0 + change

    def _next_row_terms(
        self, X: Any, y: Any, teacher_logits: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return ‖Δ_n‖², the errors r and v of new rows, and n: the terms of Eq. 10's next step."""
        frame = self.frame_
        z_eff = to_tensor(self.effective_decision_function(X, y, teacher_logits))
        q = frame.coordinates(self._logit_change())
        rows = self._to_working(self._check_new_rows(X, "score"))
        z_0 = self._initial_logits(rows)
        to_reach = z_eff if z_0 is None else z_eff - z_0.to(z_eff)
        errors, directions = torch.empty_like(z_eff), z_eff.new_empty(len(rows))
        for block, u, v in frame.feature_blocks(rows):
            errors[block] = to_reach[block] - (u @ q).to(z_eff)
            directions[block] = frame.new_directions(v).to(z_eff)
        return q.square().sum().to(z_eff), errors, directions, frame.n_rows
