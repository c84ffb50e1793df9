"""The plan of a distillation: one call that answers a distiller's questions."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from sklearn_kd._progress import fit_task
from sklearn_kd._sklearn import CallbackSupportMixin, Interval, StrOptions, fit_context
from sklearn_kd._warnings import said_before
from sklearn_kd.plan._about_learners import about_student, about_teacher
from sklearn_kd.plan._about_recipe import about_hard_labels, about_recipe, recipe_of
from sklearn_kd.plan._about_rows import about_labels, about_rows, forecast
from sklearn_kd.plan._about_training import about_stopping, about_trust, search_for_time
from sklearn_kd.plan._curves import learning_curves
from sklearn_kd.plan._figures import plot
from sklearn_kd.plan._report import body, to_html
from sklearn_kd.plan._searches import Given, folds_of, search_for
from sklearn_kd.plan._students import students_of
from sklearn_kd.plan._teachers import posed_teachers, teachers_of
from sklearn_kd.rows._checking import check_rows
from sklearn_kd.rows._views import rows_of_student
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.students._torch_student import TorchStudent
from sklearn_kd.teachers._teaching import class_hints


class DistillationPlan(CallbackSupportMixin, BaseEstimator):
    """What to train, on which rows, until when, and how sure that is: one call.

    A teacher, a student, some labelled rows and perhaps many without labels: which recipe, with
    hard labels or without, which teacher, how many rows, when to stop? The plan searches ρ and T on
    held-out rows in closed form (:class:`LinearizedKDStudentCV`), follows students of fewer rows,
    and says what it found in plain sentences, each with its uncertainty. "Inconclusive" where the
    rows cannot tell.

    Parameters
    ----------
    student : kernel, torch.nn.Module, TorchStudent, or dict or list of these, default=None
        Who learns. A network, with how it is trained, is a :class:`TorchStudent`; a module alone
        is ``TorchStudent(module)``. It is stood for by short pilots, in finite time, as by
        :meth:`LinearizedKDStudentCV.for_network`. A kernel, such as
        :class:`~sklearn_kd.kernels.NTK`, is a network of infinite width that converges; None is
        ``NTK()``. Several, by name, are compared, each by its own best recipe.
    teachers : classifier, or dict or list of classifiers, default=None
        Who teaches: any that students take. Several, by name, are tried alone and all in equal
        parts: families, sizes, checkpoints of one run. Unfitted ones are cross-fitted within the
        folds; a network needs fitted ones. None is ``NTKTeacher()``, unless ``teacher_logits`` are
        passed to ``fit``.
    soft_ratios : sequence of float in (0, 1], default=(0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0)
        Candidates for the weight ρ of the soft labels.
    temperatures : sequence of float > 0, default=(1.0, 2.0, 4.0)
        Candidates for the temperature T.
    temperature_scaling : {"squared", "none"}, default="squared"
        "squared" multiplies the soft term by T², as training recipes do, so that one learning rate
        serves every T. "none" is the paper's loss. A :class:`TorchStudent` is set to it.
    ridges : sequence of float ≥ 0, default=(0.0,)
        Candidates for the ridge, which is weight decay to a network.
    row_factors : sequence of float > 1, default=(2, 4, 8)
        Forecasts are made for so many times as many rows.
    n_orders : int ≥ 2, default=5
        Random orders of the rows behind the learning curves; with five every fold is tested.
    cv : int, splitter, iterable or None, default=None
        Folds. None: five stratified ones of the rows in a random order, and leave-one-out in the
        search of a single student that is a kernel, with fitted teachers. Rows that belong
        together, as by one author, need a splitter that keeps them so, or its folds.
    teacher_cv : int, splitter, iterable, "prefit" or None, default=None
        As in :class:`LinearizedKDStudentCV`.
    random_state : int, RandomState instance or None, default=None
        Folds, and orders of the rows. Networks have a ``random_state`` of their own.
    device : str or torch.device, default="auto"
        Where kernels compute. "auto" is CUDA where available, else the CPU.
    memory_limit : "auto" or float, default="auto"
        Bytes that a fit may take, as in :class:`LinearizedKDStudentCV`.
    n_jobs : int, default=None
        Workers that fit the clones of an unfitted teacher.

    Attributes
    ----------
    recipe_ : Recipe
        ρ and T to train with; ``recipe_.as_code("torch")`` is the loss as code.
    findings_ : dict of Finding
        The answers by topic: "recipe", "hard labels", "teacher", "student", "rows", "stopping",
        "labels worth checking", "trust". A finding has a ``claim`` in a word or two, ``is_sure``
        (whether the rows tell, at 90 %), ``sentences`` and the ``values`` behind them.
    search_ : LinearizedKDStudentCV
        The search of the chosen student, with the chosen teacher.
    teacher_search_ : LinearizedKDStudentCV
        That over all teachers, each alone and all in equal parts; ``search_`` if there is one.
    searches_ : dict of LinearizedKDStudentCV
        Those of all students, by name.
    stopping_search_ : LinearizedKDStudentCV
        The chosen recipe at several stopping times, scored but not refitted.
    forecasts_ : list of Forecast
        Learning curves by ρ, and their continuations, over labelled rows and over those without a
        label; none where there are too few rows.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_rows_, n_labelled_ : int
        Rows, and those with a label.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Feature names, where ``X`` has string names.

    Raises
    ------
    TypeError
        If a student is neither a kernel nor a network, or a teacher is no classifier.
    ValueError
        If teachers and logits that replace them are both given; and as the search and the students
        raise.

    See Also
    --------
    LinearizedKDStudentCV : The search alone.
    sklearn_kd.metrics.learning_curve_forecast : The forecast alone.

    Notes
    -----
    Of teachers that cannot be told from the best one, the most accurate is taken, and its recipes
    are searched by themselves.

    What is said to be so is so at 90 %, for all cells of the grid together: the best set of
    :class:`LinearizedKDStudentCV`. Hard labels "help" if no cell at ρ = 1 is in that set, "hurt" if
    no other cell is, and "hurt below" some ρ if no cell up to that one is, while ρ = 1 is. The
    stopping time is searched with the chosen recipe alone, by five folds; "early" means that the
    whole training is outside of that search's best set. Accuracies are against the labels at hand:
    where these are wrong in an unsystematic way differences shrink, but keep their sign.

    The learning curve is tested on another fold in each of ``n_orders`` orders, or on ``X_val``;
    students of fewer rows are trained for as many epochs. Intervals
    are at 80 %.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_kd import DistillationPlan
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> teacher = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X[:600], y[:600]))
    >>> plan = DistillationPlan(teachers=teacher, random_state=0).fit(X[600:1100], y[600:1100])
    >>> plan.findings_["hard labels"].claim
    'help'
    >>> print(plan.findings_["hard labels"].sentences[0])
    Hard labels help: without them (ρ = 1) the student loses 5.4 ± 1.1 points.
    >>> plan.recipe_.temperature_scaling  # of plan.recipe_.as_code("torch")
    'squared'
    """

    _parameter_constraints: ClassVar[dict] = {
        "student": "no_validation",
        "teachers": "no_validation",
        "soft_ratios": ["array-like"],
        "temperatures": ["array-like"],
        "temperature_scaling": [StrOptions({"none", "squared"})],
        "ridges": ["array-like"],
        "row_factors": ["array-like"],
        "n_orders": [Interval(Integral, 2, None, closed="left")],
        "cv": ["cv_object", None],
        "teacher_cv": ["cv_object", StrOptions({"prefit"}), None],
        "random_state": ["random_state"],
        "device": [str, torch.device],
        "memory_limit": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        student: Any = None,
        teachers: Any = None,
        *,
        soft_ratios: Any = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0),
        temperatures: Any = (1.0, 2.0, 4.0),
        temperature_scaling: str = "squared",
        ridges: Any = (0.0,),
        row_factors: Any = (2, 4, 8),
        n_orders: int = 5,
        cv: Any = None,
        teacher_cv: Any = None,
        random_state: Any = None,
        device: str | torch.device = "auto",
        memory_limit: float | str = "auto",
        n_jobs: int | None = None,
    ) -> None:
        self.student = student
        self.teachers = teachers
        self.soft_ratios = soft_ratios
        self.temperatures = temperatures
        self.temperature_scaling = temperature_scaling
        self.ridges = ridges
        self.row_factors = row_factors
        self.n_orders = n_orders
        self.cv = cv
        self.teacher_cv = teacher_cv
        self.random_state = random_state
        self.device = device
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs

    # As check_rows reads it; kernels work in double precision here.
    dtype: ClassVar[str] = "auto"

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Any,
        y: Any,
        X_val: Any = None,
        y_val: Any = None,
        *,
        teacher_logits: Any = None,
        teacher_logits_val: Any = None,
    ) -> Self:
        """Search, follow the learning curve, and find the answers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The rows that the student is going to learn. Teachers are given ``X`` as it is.
        y : array-like of shape (n_samples,)
            Hard labels; -1, or a missing value, for none, as in :class:`LinearizedKDStudent`.
        X_val : array-like of shape (n_validation, n_features), default=None
            Rows to score on, instead of held-out rows of ``X``; the better choice where the labels
            of ``X`` may be wrong and these are right.
        y_val : array-like of shape (n_validation,), default=None
            Their labels.
        teacher_logits : array-like of shape (n_samples,) or (n_samples, n_classes), or dict of \
them, default=None
            Logits on ``X`` that stand in for the teacher, or, by name, for several. They must not
            come from teachers that were trained on these labels.
        teacher_logits_val : array-like or dict of them, default=None
            The same on ``X_val``.

        Returns
        -------
        self : DistillationPlan
            The fitted plan.
        """
        with fit_task(self, X, y, None) as progress:
            # 1. The rows, who could teach, and who could learn.
            given, teachers = self._posed(X, y, X_val, y_val, teacher_logits, teacher_logits_val)
            students = students_of(self.student)
            options = self._options()
            progress.begin(len(students) + 1 + 2 * self.n_orders)

            # 2. Recipe and teacher for every student, on held-out rows; the best student.
            #    Leave-one-out, in closed form, where there is one student, which converges.
            has_closed_form = teachers.are_fitted and students[0].network is None
            is_alone = len(students) == 1 and has_closed_form and self.cv is None
            cv = None if is_alone or X_val is not None else given.splits
            searched = []
            for student in students:
                with progress.step("search"):
                    searched.append(search_for(student, teachers, given, options, cv))
            chosen = int(np.argmax([one.accuracy[0] for one in searched]))
            best = searched[chosen]

            # 3. How long to train, with that recipe.
            with progress.step("stopping-times"), said_before():
                timed = search_for_time(best, teachers, given, options)

            # 4. Students of fewer rows, and what these say of more.
            right = best.teachers_right
            with said_before():
                curves = learning_curves(
                    best, teachers, given, options, self.n_orders, self.random_state, progress
                )
            recipe, floor = recipe_of(best), None
            if teachers.are_fitted and best.teacher in teachers.names:
                floor = float(1 - np.nanmean(right[teachers.names.index(best.teacher)]))
            factors = tuple(float(f) for f in self.row_factors)
            forecasts = [forecast(one, given, recipe.soft_ratio, factors, floor) for one in curves]

            # 5. The answers.
            of_recipe = about_recipe(best)
            of_labels = about_labels(best, given)
            n_doubtful = len(of_labels.values.get("doubtful", ()))
            findings = [
                of_recipe,
                about_hard_labels(best, given),
                about_teacher(best, teachers),
                about_student(searched, chosen),
                about_rows(forecasts, given, is_network=best.student.network is not None),
                about_stopping(timed),
                of_labels,
                about_trust(best, given, right, n_doubtful, of_recipe, teachers),
            ]
            self.__dict__.update(
                classes_=given.rows.classes,
                recipe_=recipe,
                findings_={finding.topic: finding for finding in findings},
                search_=best.search,
                teacher_search_=best.teacher_search,
                searches_={one.student.name: one.search for one in searched},
                stopping_search_=timed,
                forecasts_=forecasts,
                n_rows_=len(given.rows.labels),
                n_labelled_=len(given.labelled),
                _teachers=teachers,
                _best=best,
            )
        return self

    def _posed(
        self, X: Any, y: Any, X_val: Any, y_val: Any, logits: Any, logits_val: Any
    ) -> tuple[Given, Any]:
        """Return the rows and the teachers, checked."""
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val are rows and their labels; pass both, or neither.")
        if X_val is not None and logits is not None and logits_val is None:
            raise ValueError(
                "teacher_logits stand in for the teacher, which is asked about X_val too; pass "
                "teacher_logits_val."
            )
        named = teachers_of(self.teachers, logits)
        first, *others = named.values()
        if logits is None:
            hints = class_hints([first, *others] if others else first, self.teacher_cv, None, None)
        else:
            hints = class_hints(None, None, first, None)
        rows = check_rows(self, rows_of_student(X), y, None, hints)
        teachers = posed_teachers(
            named,
            self.teacher_cv,
            rows.classes,
            X,
            len(rows.labels),
            X_val,
            logits_val,
            are_logits=logits is not None,
        )
        splits = folds_of(self.cv, rows, self.random_state)
        return Given(X, y, rows, splits, X_val, y_val), teachers

    def _options(self) -> dict[str, Any]:
        """Return the parameters that every search shares."""
        return {
            name: getattr(self, name)
            for name in (
                "soft_ratios",
                "temperatures",
                "temperature_scaling",
                "ridges",
                "teacher_cv",
                "device",
                "memory_limit",
                "n_jobs",
            )
        }

    def summary(self, *, width: int = 88) -> str:
        """Return the answers in plain sentences.

        Parameters
        ----------
        width : int, default=88
            Characters of a line.

        Returns
        -------
        str
            One paragraph for each topic.
        """
        check_is_fitted(self)
        lines = [
            f"Plan for {self.n_labelled_} labelled and {self.n_rows_ - self.n_labelled_} "
            f"unlabelled rows, {len(self.classes_)} classes"
        ]
        for topic, finding in self.findings_.items():
            text = f"{topic.capitalize()}: {finding}"
            lines.append(textwrap.fill(text, width, subsequent_indent="    "))
        return "\n".join(lines)

    def student_(self) -> TorchStudent | LinearizedKDStudent:
        """Return the chosen student with the chosen recipe and teacher, unfitted.

        Returns
        -------
        TorchStudent or LinearizedKDStudent
            A network, or the closed form where the student is a kernel.
        """
        check_is_fitted(self)
        recipe = asdict(self.recipe_)
        teacher = self._teachers.chosen(self.search_.best_params_.get("teacher_weights"))
        network = self._best.student.network
        if network is not None:
            return clone(network).set_params(teacher=teacher, **recipe)
        kernel, ridge = self._best.student.kernel, self.search_.best_params_["ridge"]
        return LinearizedKDStudent(
            teacher, kernel=kernel, ridge=ridge, device=self.device, **recipe
        )

    plot = plot
    to_html = to_html

    def _html_repr(self) -> str:
        """Return the report in a notebook, once there is one."""
        return body(self) if hasattr(self, "findings_") else super()._html_repr()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
