"""Predictions on rows left out, for every right-hand side, from one kernel matrix.

Symbols (paper -> code -> shape), with n distinct rows, C candidates (ρ, T) and K classes (no K
axis for two); S is the set of rows left out, −S all others:

==========  ==================  =========================================================
Θ           ``gram``            (n, n)
Δz          ``targets``         (n, C) or (n, C, K)
f_{−S}(x)   ``logits``          (m, C) or (m, C, K), of the student trained on −S
v(x)        ``new_directions``  () -> (m,) squared norm of what x adds to −S, with its ridge
‖Δ_{−S}‖²   ``squared_norms``   (1, C) or, where each row has a student of its own, (m, C)
==========  ==================  =========================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._frame import TangentFrame


class HeldOut(NamedTuple):
    """What the students that have not seen the rows say about them."""

    logits: Tensor
    new_directions: Callable[[], Tensor]  # computed when asked for: most scores do not need it
    squared_norms: Tensor
    n_rows: int  # number of distinct rows that each of the students was trained on


@dataclass(frozen=True)
class MatrixKernel:
    """A kernel given as its matrix: "rows" are row numbers, (n, 1), in the matrix's dtype."""

    matrix: Tensor

    def block(self, X: Tensor, Y: Tensor) -> Tensor:
        """Return the entries of the matrix, shape (n, m)."""
        return self.matrix[X[:, 0].long()][:, Y[:, 0].long()]

    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return the entries of the matrix, shape (n, n), in ``out`` if given."""
        rows = X[:, 0].long()
        out = X.new_empty((len(X), len(X))) if out is None else out
        # Row by row of blocks: indexing both axes at once would copy through a third matrix.
        for start in range(0, len(rows), 512):
            block = slice(start, start + 512)
            columns = slice(0 if symmetrize else start, None)
            out[block, columns] = self.matrix[rows[block]][:, rows[columns]]
        return out

    def diag(self, X: Tensor) -> Tensor:
        """Return the diagonal entries, shape (n,)."""
        return self.matrix.diagonal()[X[:, 0].long()]

    def rows(self, numbers: Tensor) -> Tensor:
        """Return row numbers (n,) in the form in which this kernel takes rows, (n, 1)."""
        return numbers.to(self.matrix)[:, None]


def class_sum(values: Tensor) -> Tensor:
    """Return the sum over the classes of (n, C) or (n, C, K), shape (n, C)."""
    return values.reshape(*values.shape[:2], -1).sum(dim=2)


@full_precision()
def fold_held_out(
    gram: Tensor,
    train: Tensor,
    held_out: Tensor,
    targets: Tensor,
    *,
    alpha: float,
    weights: Tensor,
    memory_limit: float | str = "auto",
) -> HeldOut:
    """Train on the rows ``train`` of the kernel matrix and predict ``held_out``: one factor.

    Parameters
    ----------
    gram : Tensor of shape (n, n)
        Kernel matrix of all rows.
    train, held_out : Tensor of int of shapes (n_train,), (m,)
        Row numbers, those of ``train`` distinct. A row may be in both, where copies of it are.
    targets : Tensor of shape (n_train, C) or (n_train, C, K)
    alpha : float
        Ridge.
    weights : Tensor of shape (n_train,)
        Positive row weights, which divide the ridge.
    memory_limit : "auto" or number of bytes, default="auto"
        Budget for the fold's factor.
    """
    kernel = MatrixKernel(gram)
    frame = TangentFrame(
        kernel, kernel.rows(train), alpha=alpha, weights=weights, memory_limit=memory_limit
    )
    q, coefficients = frame.coordinates(targets), frame.solve(targets)
    logits = gram[held_out][:, train] @ coefficients.reshape(len(train), -1)

    @functools.cache
    def new_directions() -> Tensor:
        values = targets.new_empty(len(held_out))
        for block, _, v in frame.feature_blocks(kernel.rows(held_out)):
            values[block] = frame.new_directions(v)
        return values

    return HeldOut(
        logits.reshape(-1, *targets.shape[1:]),
        new_directions,
        class_sum(q.square()).sum(dim=0)[None],
        len(train),
    )


def leave_one_out(frame: TangentFrame, targets: Tensor) -> HeldOut:
    """Predict each row of the frame by the student trained on all the others; no refit.

    With A = L Lᵀ, a = A⁻¹ Δz and s = 1 / (A⁻¹)ᵢᵢ: f₋ᵢ(xᵢ) = Δzᵢ − aᵢ s, v(xᵢ) = s (with the row's
    own ridge) and ‖Δ₋ᵢ‖² = ‖Δ‖² − aᵢ² s.
    """
    q = frame.coordinates(targets)
    a = frame.solve(targets)
    s = 1 / frame.inverse_diagonal()
    logits = targets - a * s.reshape(-1, *[1] * (targets.ndim - 1))
    total = class_sum(q.square()).sum(dim=0)
    squared_norms = (total - class_sum(a.square()) * s[:, None]).clamp_min(0)
    return HeldOut(logits, lambda: s, squared_norms, frame.n_rows - 1)
