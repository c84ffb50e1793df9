"""What a student does with the tangent frame of its training rows."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_kd._array import to_tensor
from sklearn_kd.kernels._tiles import product
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.solvers._cholesky import Cholesky
from sklearn_kd.solvers._frame_cache import frames
from sklearn_kd.students._of_teachers import StudentOfTeachers


class StudentOnFrame(StudentOfTeachers):
    """A student with a tangent frame, which it keeps once it is built."""

    _frame: TangentFrame | None = None  # the n² factor, where there is one

    def tangent_frame(self) -> TangentFrame:
        """Return the tangent frame of the training rows.

        It is there after a fit with a factor ("cholesky"). Otherwise, and after unpickling, it is
        built anew: an n × n matrix and its factor, which the student then keeps.

        Returns
        -------
        TangentFrame
            With the rows of ``X_fit_``, in their order.

        Raises
        ------
        AttributeError
            If the student was fitted with "nystrom", or stopped, and has no such frame.
        MemoryBudgetError
            If it has to be built and does not fit ``memory_limit``.
        """
        self._require_all_rows("tangent_frame")
        if self._frame is None:
            rows, weights = map(self._to_working, (self.X_fit_, self._distinct.weights))
            self._frame = self._build_frame(rows, weights)
        return self._frame

    def _build_frame(self, X: Tensor, weights: Tensor) -> TangentFrame:
        solver = self.solver_ if isinstance(self.solver_, Cholesky) else Cholesky()
        kernel, ridge = self._kernel_function(), self.fit_report_.ridge
        return solver.frame(kernel, X, weights, ridge, self.memory_limit)

    def _require_all_rows(self, what: str) -> None:
        """Raise where the kernel expansion is not one of all training rows."""
        check_is_fitted(self)
        if self.fit_report_.stopping_time is not None:
            raise AttributeError(
                f"{what} is of the converged student, and this one stopped at "
                f"stopping_time={self.fit_report_.stopping_time!r}; fit one with "
                "stopping_time=None."
            )
        if not self.solver_.keeps_all_rows:
            raise AttributeError(
                f"{what} needs the tangent frame of all training rows, which a student fitted with "
                f"solver={self.solver_.name!r} does not have; fit one with solver='auto', on fewer "
                "rows if these do not fit."
            )

    def _logit_change(self) -> Tensor:
        """Return Δz = z_eff − z₀ on ``X_fit_``."""
        z_eff, z_0 = map(self._to_working, (self.effective_logits_, self.initial_logits_))
        return z_eff - z_0

    def _kernel_product(self, X: Tensor, columns: Tensor) -> Tensor:
        if self._frame is not None and isinstance(self.solver_, Cholesky):
            kept = frames.cross_blocks(self._frame, X, cache_size=self.solver_.cache_size)
            if kept is not None:
                return product(kept, len(X), columns)
        return super()._kernel_product(X, columns)

    def _next_row_terms(
        self, X: Any, y: Any, teacher_logits: Any = None, teacher_trust: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return ‖Δ_n‖², the errors r and v of new rows, and n: the terms of Eq. 10's next step."""
        check_is_fitted(self)
        if not isinstance(self.solver_, Cholesky):
            raise AttributeError(
                "The data inefficiency needs the tangent frame of all training rows, which "
                f"students fitted with solver={self.solver_.name!r} do not have; use another score "
                "or solver='cholesky'."
            )
        frame = self.tangent_frame()
        z_eff = to_tensor(self.effective_decision_function(X, y, teacher_logits, teacher_trust))
        q = frame.coordinates(self._logit_change())
        rows = self._to_working(self._check_new_rows(X, "score"))
        z_0 = self._initial_logits(rows)
        to_reach = z_eff if z_0 is None else z_eff - z_0.to(z_eff)
        errors, directions = torch.empty_like(z_eff), z_eff.new_empty(len(rows))
        for block, u, v in frame.feature_blocks(rows):
            errors[block] = to_reach[block] - (u @ q).to(z_eff)
            directions[block] = frame.new_directions(v).to(z_eff)
        return q.square().sum().to(z_eff), errors, directions, frame.n_rows
