"""Reports of a fit to scikit-learn's callbacks: the fit, and its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sklearn_kd._sklearn import CallbackContext, callbacks_of, nest_deeper

PERCENT = 100  # how finely a gradient flow reports its progress


class FitTask:
    """The fit of an estimator, which goes in steps.

    Callbacks see one task, the fit, and its steps as subtasks of that without subtasks of their
    own, whatever the depth at which they are taken: a progress bar is one line that moves.

    Parameters
    ----------
    estimator : estimator
        The estimator that is being fitted.
    context : CallbackContext
        The fit as callbacks see it.
    seen : dict
        What callbacks are told at the begin of the fit.
    """

    def __init__(self, estimator: Any, context: CallbackContext, seen: dict[str, Any]) -> None:
        self.estimator = estimator
        self._context = context
        self._seen = seen
        self._n_begun = 0

    def begin(self, n_steps: int) -> None:
        """Announce the fit, in about ``n_steps`` steps: further ones are taken unannounced."""
        self._context.max_subtasks = n_steps
        self._context.call_on_fit_task_begin(**self._seen)

    def end(self) -> None:
        """Announce the end of the fit."""
        # The estimator is complete, so callbacks that score can use it directly.
        self._context.call_on_fit_task_end(**self._seen, reconstruction_attributes={})

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce the start and end of a step; one that fails has no end."""
        leaf = self.leaf(name)
        leaf.begin()
        yield
        leaf.end()

    def leaf(self, name: str) -> Leaf:
        """Return a step that is not yet begun; a worker may run it.

        It is sent there without the estimator if no callback could ask for it.
        """
        estimator = self.estimator if callbacks_of(self.estimator) else None
        if self._n_begun == self._context.max_subtasks:
            return Leaf(estimator, None)
        self._n_begun += 1
        return Leaf(estimator, self._context.subcontext(task_name=name))

    @contextlib.contextmanager
    def parts(self, name: str, n_parts: int) -> Iterator[Callable[[float], None]]:
        """Yield a function to which the share that is done is told; it announces equal steps."""
        n_done = 0

        def report(share: float) -> None:
            nonlocal n_done
            while n_done < int(share * n_parts):
                n_done += 1
                with self.step(name):
                    pass

        yield report
        report(1.0)


class Leaf(NamedTuple):
    """A step of the fit of ``estimator``; without a context it is not announced."""

    estimator: Any
    context: CallbackContext | None

    def begin(self) -> None:
        """Announce the start."""
        if self.context is not None:
            self.context.call_on_fit_task_begin(estimator=self.estimator)

    def end(self) -> None:
        """Announce the end."""
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator)

    @contextlib.contextmanager
    def fit_of(self, sub_estimator: Any) -> Iterator[None]:
        """Announce this step, the fit of ``sub_estimator``, also to callbacks of its own.

        Callbacks that are propagated count it as two levels: a progress bar has no line for each
        of many fits, unless its ``max_propagation_depth`` asks for them.
        """
        with contextlib.ExitStack() as stack:
            if self.context is not None and hasattr(sub_estimator, "set_callbacks"):
                nest_deeper(self.context)
                stack.enter_context(self.context.propagate_callback_context(sub_estimator))
            self.begin()
            yield
        self.end()


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
def fit_task(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Iterator[FitTask]:
    """Yield the fit of ``estimator``, to be begun; the estimator is restored on any error."""
    # Not undone by `restored_on_error`: the teardown of the callbacks finds its context there.
    context = estimator._init_callback_context(max_subtasks=None)
    seen = {
        "estimator": estimator,
        "X": X,
        "y": y,
        "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
    }
    with restored_on_error(estimator):
        progress = FitTask(estimator, context, seen)
        yield progress
        progress.end()
