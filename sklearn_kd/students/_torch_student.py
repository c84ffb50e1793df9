"""The student that is really trained: a torch module, on the loss of distillation (Eq. 2)."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_kd._array import like, plain
from sklearn_kd._modules import on_device, require_input_shape
from sklearn_kd._progress import fit_task
from sklearn_kd._sklearn import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    fit_context,
)
from sklearn_kd._warnings import warn
from sklearn_kd.distillation._effective_logits_of_rows import mixed_logits
from sklearn_kd.rows._checking import check_rows, validated
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.rows._refusals import require_rows
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.rows._views import rows_of_student, rows_of_teacher
from sklearn_kd.students._of_teachers import KnowsTeachers
from sklearn_kd.students._pilot import pilot_kernel
from sklearn_kd.students._posed import report_of_teaching
from sklearn_kd.students._torch_network import (
    logits_of_network,
    seeds_of,
    started_network,
)
from sklearn_kd.students._torch_time import stopping_time
from sklearn_kd.students._torch_training import (
    BatchLoss,
    RowsToLearn,
    Schedule,
    parts_of,
    skorch_module,
    train,
)
from sklearn_kd.teachers._constraint import TeacherConstraint
from sklearn_kd.teachers._logits_of import Reading
from sklearn_kd.teachers._ntk_teacher import NTKTeacher
from sklearn_kd.teachers._several import normalised_weights
from sklearn_kd.teachers._teaching import class_hints, n_teaching_steps, teach
from sklearn_kd.teachers._torch_teacher import parameter_dtype

_ROWS_AT_ONCE = 1024  # of an evaluation, where a batch is all rows


class TorchStudent(CallbackSupportMixin, KnowsTeachers):
    r"""Student of knowledge distillation that is really trained: your own torch network.

    The network is trained on the mean over the rows of
    ρ H(σ(z_t/T), σ(z/T)) + (1 − ρ) H(y, σ(z)) (Eq. 2), the loss whose minimum
    :class:`LinearizedKDStudent` has in closed form.

    Parameters
    ----------
    module : torch.nn.Module or callable
        The network: it maps a batch of rows to a tensor of logits, before any softmax or sigmoid,
        one per class in the order of ``classes_``; for two classes also one alone, the log-odds of
        the second, (n,) or (n, 1). A module is a start: a copy of it is trained, from the weights
        that it has. A function or class builds the network, anew for each fit, with weights that
        follow from ``random_state``. Of the arguments ``n_features``, ``n_classes`` and
        ``generator``, a `torch.Generator`, it is given those that it has without a default.
    teacher : classifier or list of them, default=None
        As in :class:`LinearizedKDStudent`: an unfitted one is cross-fitted (``cv``), a
        ``FrozenEstimator`` or :class:`TorchTeacher` is used as it is, a list teaches by the mean of
        the soft labels, and None means ``NTKTeacher()``. Not needed where ``teacher_logits`` is
        passed to ``fit``.
    soft_ratio : float in [0, 1], default=0.9
        Weight ρ of the soft labels; 1 − ρ is that of the hard labels.
    temperature : float > 0, default=2.0
        Temperature T that divides the logits in the soft term.
    temperature_scaling : {"none", "squared"}, default="none"
        "none" is the paper's loss; "squared" multiplies the soft term by T², as Hinton et al.
        (2015) do.
    cv : int, splitter, iterable or "prefit", default=5
        Cross-fitting of an unfitted teacher. "prefit" takes ``teacher`` as already fitted.
    optimizer : str or callable, default="SGD"
        Optimizer: a class, or its name in `torch.optim`.
    lr : float > 0, default=0.1
        Learning rate. The default is one for SGD; Adam's own is 0.001.
    optimizer_params : dict, default=None
        Other options of the optimizer, such as ``{"momentum": 0.9}``.
    max_epochs : int ≥ 1, default=20
        Passes over the rows.
    batch_size : int ≥ 1 or None, default=128
        Rows of a step, in a new random order in each epoch. None is all rows.
    input_shape : tuple of int, default=None
        Shape that each row is given, such as ``(3, 32, 32)`` for images that are stored as rows of
        3072 features. None: rows stay flat.
    validation_fraction : float in (0, 1), default=None
        Share of the rows to hold out. Training stops when their loss has not fallen for 10 epochs,
        and the weights are those of its minimum. None: no early stopping.
    callbacks : list of skorch callbacks, default=None
        For the training loop: schedules of the learning rate, checkpoints, a
        ``skorch.callbacks.PrintLog()`` that prints a line for each epoch. An ``EarlyStopping``
        among them replaces that of ``validation_fraction``. The target of a row is a tuple: the
        teacher's logits, the class index or -1, and the weight.
    random_state : int, RandomState instance or None, default=None
        Seed of the order of the rows, of the rows to hold out, of dropout, and of the initial
        weights where ``module`` builds the network. Equal seeds give equal weights, on one machine
        with one number of threads. Torch's own random state is neither read nor changed.
    device : str or torch.device, default="auto"
        Where to train. "auto" is CUDA where available, else the CPU.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    module_ : torch.nn.Module
        The trained network, in evaluation mode: an ordinary module.
    history_ : skorch.history.History
        A row for each epoch; ``history_[:, "train_loss"]`` are the losses (Eq. 2), and "valid_loss"
        those of the rows held out.
    n_epochs_ : int
        Epochs that were completed.
    teacher_ : classifier, list of them, or None
        The fitted teacher, or teachers; None if ``teacher_logits`` stood in for it.
    teacher_logits_ : ndarray of shape (n_samples,) or (n_samples, n_classes)
        The teacher's logits on the rows of ``X``, summing to zero over three or more classes.
    fit_report_ : Bunch
        ``n_rows``, ``n_held_out_rows``, ``n_zero_weight_rows``, ``n_unlabelled_rows``,
        ``teacher_method``, ``probability_floor``, ``n_clipped_teacher_rows``,
        ``cross_fitted_teacher``, ``soft_ratio``, ``temperature``, ``temperature_scaling``,
        ``teacher_weights``, ``interrupted``, ``device``, ``dtype``; see
        :class:`LinearizedKDStudent`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if they are strings.

    Raises
    ------
    ImportError
        If skorch is not installed: ``pip install 'sklearn_kd[networks]'``.
    ValueError
        If the module fails on the rows, has another number of outputs than classes, or ends in a
        softmax or sigmoid; if the loss becomes infinite or NaN, as with a learning rate that is too
        large. The student is then left as it was.

    Warns
    -----
    UserWarning
        If training is interrupted by Ctrl-C; and what :class:`LinearizedKDStudent` warns of.

    See Also
    --------
    LinearizedKDStudent : The closed form of a wide network.
    sklearn_kd.distillation.DistillationLoss : The loss, for a training loop of your own.

    Notes
    -----
    The loop is skorch's. All rows are on ``device`` in the precision of the module's parameters,
    in which it is trained. If a module with batch normalisation were given a last batch of one row,
    that row is left out of the epoch.

    A row without a label is learnt from the teacher alone, ρ = 1, and ``score`` does not count it.

    Ctrl-C ends training, not the fit: the student has the weights that it has reached, and a
    warning says so. In a search or cross-validation of scikit-learn it ends that. To train
    further, pass the weights as the start: ``TorchStudent(student.module_, ...)``.

    Fits in several threads at a time share torch's random state, so that seeds do not hold there;
    searches with processes (``n_jobs``) are reproducible.

    ``set_callbacks(sklearn.callback.ProgressBar())`` shows a line that moves with every epoch.

    References
    ----------
    G. Ji and Z. Zhu, "Knowledge Distillation in Wide Neural Networks", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from torch import nn
    >>> from sklearn_kd import TorchStudent
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> def network(n_features, n_classes):
    ...     return nn.Sequential(
    ...         nn.Linear(n_features, 50), nn.ReLU(), nn.Linear(50, n_classes)
    ...     )
    >>> teacher = LogisticRegression(max_iter=1000)
    >>> student = TorchStudent(network, teacher, soft_ratio=0.5, lr=0.5, random_state=0)
    >>> student.fit(X[:1000], y[:1000]).score(X[1000:], y[1000:]) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "module": [nn.Module, callable],
        "teacher": [TeacherConstraint(), None],
        "soft_ratio": [Interval(Real, 0, 1, closed="both")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "temperature_scaling": [StrOptions({"none", "squared"})],
        "cv": ["cv_object", StrOptions({"prefit"})],
        "optimizer": [str, callable],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "optimizer_params": [dict, None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "input_shape": [tuple, list, None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "callbacks": [list, tuple, None],
        "random_state": ["random_state"],
        "device": [str, torch.device],
    }

    def __init__(
        self,
        module: Any,
        teacher: ClassifierMixin | list[ClassifierMixin] | None = None,
        *,
        soft_ratio: float = 0.9,
        temperature: float = 2.0,
        temperature_scaling: str = "none",
        cv: Any = 5,
        optimizer: Any = "SGD",
        lr: float = 0.1,
        optimizer_params: dict[str, Any] | None = None,
        max_epochs: int = 20,
        batch_size: int | None = 128,
        input_shape: tuple[int, ...] | None = None,
        validation_fraction: float | None = None,
        callbacks: list[Any] | None = None,
        random_state: Any = None,
        device: str | torch.device = "auto",
    ) -> None:
        self.module = module
        self.teacher = teacher
        self.soft_ratio = soft_ratio
        self.temperature = temperature
        self.temperature_scaling = temperature_scaling
        self.cv = cv
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_params = optimizer_params
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.input_shape = input_shape
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks
        self.random_state = random_state
        self.device = device

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        teacher_logits: Any = None,
        classes: Any = None,
    ) -> Self:
        """Train the network on the teacher and the labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, flat. The teacher is given ``X`` as it is, a data frame too.
        y : array-like of shape (n_samples,)
            Hard labels: integers or strings; -1, or a missing string, for none, as in
            :class:`LinearizedKDStudent`.
        sample_weight : array-like of shape (n_samples,), default=None
            Row weights: the loss is the weighted mean over the rows. Also passed to the teacher's
            ``fit`` where that takes them. Rows of weight 0 are left out, by the teacher too.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            The teacher's logits on ``X``, in the order of the sorted classes, or a data frame with
            columns named after them; for two classes one log-odds per row, or one column per class.
            They replace the teacher.
        classes : array-like of shape (n_classes,), default=None
            The classes, sorted, where ``y`` may lack some that ``teacher_logits`` have. A fitted
            teacher's are its own.

        Returns
        -------
        self : TorchStudent
            The fitted student.
        """
        with fit_task(self, X, y, sample_weight) as progress:
            skorch_module()
            schedule = Schedule.of(self)
            hints = class_hints(self.teacher, self.cv, teacher_logits, classes)
            rows = check_rows(self, rows_of_student(X), y, sample_weight, hints, as_given=True)
            shape = require_input_shape(self.input_shape, rows.X.shape[1])
            seed, seed_of_parts = seeds_of(self.random_state, 2)
            network = started_network(self.module, rows.X, len(rows.classes), shape, seed)
            schedule.require_optimizer(network)
            learnt, held_out = parts_of(rows, self.validation_fraction, seed_of_parts)

            # 1. The teacher's logits z_t on the training rows.
            n_teaching = n_teaching_steps(
                self.teacher, teacher_logits, cv=self.cv, n_rows=len(rows.labels)
            )
            progress.begin(n_teaching + self.max_epochs)
            taught = teach(
                self.teacher,
                rows_of_teacher(X),
                rows,
                teacher_logits,
                cv=self.cv,
                reading=Reading(),
                default=lambda: NTKTeacher(device=self.device),
                progress=progress,
            )
            recipe = self._given_recipe(self.teacher if teacher_logits is None else None)
            z_t = mixed_logits(taught.logits.values, recipe)

            # 2. Training on Eq. 2.
            trained = train(
                network,
                BatchLoss(len(rows.classes), recipe),
                schedule,
                RowsToLearn.of(rows, learnt, z_t, network, shape),
                RowsToLearn.of(rows, held_out, z_t, network, shape) if len(held_out) else None,
                seed=seed,
                progress=progress,
            )
            self.__dict__.update(
                classes_=rows.classes,
                teacher_=taught.teacher,
                teacher_logits_=like(z_t, rows.array, copy=True),
                module_=network,
                history_=trained.history,
                n_epochs_=trained.n_epochs,
                fit_report_=Bunch(
                    **_report_of_rows(rows, learnt, held_out),
                    **report_of_teaching(taught),
                    **recipe,
                    interrupted=trained.interrupted,
                    device=str(rows.X.device),
                    dtype=str(parameter_dtype(network)).removeprefix("torch."),
                ),
                _readings=taught.readings,
                _input_shape=shape,
            )
        if trained.interrupted:
            warn(
                f"Training was interrupted in epoch {trained.n_epochs + 1} of {self.max_epochs}; "
                "the student has the weights that it had reached.",
                UserWarning,
            )
        return self

    def _given_recipe(self, taught_by: Any) -> dict[str, Any]:
        """Return the parameters of the loss, which the fit keeps."""
        return {
            "soft_ratio": self.soft_ratio,
            "temperature": self.temperature,
            "temperature_scaling": self.temperature_scaling,
            "teacher_weights": normalised_weights(None, taught_by),
        }

    pilot_kernel = pilot_kernel
    stopping_time = stopping_time

    def _check_new_rows(self, X: Any, method: str) -> Any:
        check_is_fitted(self)
        X = rows_of_student(X)
        require_rows(X)
        return validated(self, plain(X), reset=False)

    def _logits(self, X: Any) -> Tensor:
        return logits_of_network(
            self.module_,
            X,
            len(self.classes_),
            input_shape=self._input_shape,
            batch_size=self.batch_size or _ROWS_AT_ONCE,
        )

    def _next_row_terms(self, *args: Any) -> Any:
        raise AttributeError(
            "The data inefficiency is that of a student in closed form, and this one is a trained "
            "network; ask LinearizedKDStudent(kernel=EmpiricalNTK(module)), or use another score."
        )

    def __getstate__(self) -> dict:
        """Return the state with the modules on the CPU, so that it loads anywhere."""
        cpu = torch.device("cpu")
        return {
            name: on_device(value, cpu) if isinstance(value, nn.Module) else value
            for name, value in super().__getstate__().items()
        }


def _report_of_rows(rows: TrainingRows, learnt: Tensor, held_out: Tensor) -> dict[str, int]:
    n_rows = len(rows.labels)
    return {
        "n_rows": n_rows,
        "n_held_out_rows": len(held_out),
        "n_zero_weight_rows": n_rows - len(learnt) - len(held_out),
        "n_unlabelled_rows": int((rows.labels == NO_LABEL).sum()),
    }
