"""Reports of a fit to scikit-learn's callbacks: a tree of tasks, one per stage of the fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sklearn_kd._sklearn import CallbackContext, callbacks_of


class FitTask:
    """A task of an estimator's ``fit``, to be divided into stages.

    Parameters
    ----------
    estimator : estimator
        The estimator that is being fitted.
    context : CallbackContext
        The task as callbacks see it.
    """

    def __init__(self, estimator: Any, context: CallbackContext) -> None:
        self.estimator = estimator
        self.context = context
        self.n_done = 0

    # None means an unknown number of subtasks; 0 makes a leaf, which progress bars skip.
    @contextlib.contextmanager
    def stage(self, name: str, n_subtasks: int | None = None) -> Iterator[FitTask]:
        """Announce the start and end of a stage; a stage that fails has no end."""
        context = self.context.subcontext(task_name=name, max_subtasks=n_subtasks)
        context.call_on_fit_task_begin(estimator=self.estimator)
        yield FitTask(self.estimator, context)
        context.call_on_fit_task_end(estimator=self.estimator)

    def leaf(self, name: str) -> FitTask:
        """Return a subtask without subtasks of its own, not yet begun; a worker may run it.

        It is sent there without the estimator if no callback could ask for it.
        """
        estimator = self.estimator if callbacks_of(self.estimator) else None
        return FitTask(estimator, self.context.subcontext(task_name=name))

    @contextlib.contextmanager
    def fit_of(self, sub_estimator: Any) -> Iterator[None]:
        """Announce this leaf, the fit of ``sub_estimator``, also to callbacks of its own."""
        with (
            self.context.propagate_callback_context(sub_estimator)
            if hasattr(sub_estimator, "set_callbacks")
            else contextlib.nullcontext()
        ):
            self.context.call_on_fit_task_begin(estimator=self.estimator)
            yield
        self.context.call_on_fit_task_end(estimator=self.estimator)

    def report(self, fraction: float) -> None:
        """Announce subtasks until ``fraction`` of them are done."""
        if self.context.max_subtasks is None:
            return
        while self.n_done < int(fraction * self.context.max_subtasks):
            self.n_done += 1
            with self.stage("part", 0):
                pass


@contextlib.contextmanager
def restored_on_error(estimator: Any) -> Iterator[None]:
    """Leave ``estimator`` exactly as it was if the block raises: no half-fitted state."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@contextlib.contextmanager
def fit_task(
    estimator: Any, X: Any, y: Any, sample_weight: Any, *, n_stages: int
) -> Iterator[FitTask]:
    """Announce the fit of ``estimator``, in at most ``n_stages``; it is restored on any error."""
    # Not undone by `restored_on_error`: the teardown of the callbacks finds its context there.
    context = estimator._init_callback_context(max_subtasks=n_stages)
    seen = {
        "estimator": estimator,
        "X": X,
        "y": y,
        "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
    }
    with restored_on_error(estimator):
        context.call_on_fit_task_begin(**seen)
        yield FitTask(estimator, context)
        # The estimator is complete, so callbacks that score can use it directly.
        context.call_on_fit_task_end(**seen, reconstruction_attributes={})
