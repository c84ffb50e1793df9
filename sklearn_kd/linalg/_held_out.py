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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._cholesky import overwrite_by_factor
from sklearn_kd.linalg._frame import TangentFrame, leave_one_out_logits
from sklearn_kd.linalg._parts import product, solve_triangular

# Bytes of the kernel matrix copied at a time to gather a fold's part of it.
GATHER_BYTES = 4 * 2**20


class HeldOut(NamedTuple):
    """Predictions for rows by students that were not trained on them."""

    logits: Tensor
    new_directions: Callable[[], Tensor]  # computed on demand: most scores do not need it
    squared_norms: Tensor
    n_rows: int  # number of distinct rows that each of the students was trained on


@dataclass(frozen=True)
class MatrixKernel(KernelFunction):
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
        for block in _gather_blocks(self.matrix, len(rows)):
            columns = slice(0 if symmetrize else block.start, None)
            out[block, columns] = self.matrix[rows[block]][:, rows[columns]]
        return out

    def diag(self, X: Tensor) -> Tensor:
        """Return the diagonal entries, shape (n,)."""
        return self.matrix.diagonal()[X[:, 0].long()]

    def rows(self, numbers: Tensor) -> Tensor:
        """Return row numbers (n,) in the form in which this kernel takes rows, (n, 1)."""
        return numbers.to(self.matrix)[:, None]


def _gather_blocks(matrix: Tensor, n_rows: int) -> Iterator[slice]:
    """Split ``n_rows`` row numbers into parts small enough to copy their rows of ``matrix``."""
    step = max(1, GATHER_BYTES // (len(matrix) * matrix.element_size()))
    for start in range(0, n_rows, step):
        yield slice(start, start + step)


def class_sum(values: Tensor) -> Tensor:
    """Return the sum over the classes of (n, C) or (n, C, K), shape (n, C)."""
    return values.reshape(*values.shape[:2], -1).sum(dim=2)


def fold_frame(
    gram: Tensor, train: Tensor, *, ridge: float, weights: Tensor, memory_limit: float | str
) -> TangentFrame:
    """Return the frame of some rows of a kernel matrix, in the form that `fold_held_out` takes.

    Parameters
    ----------
    gram : Tensor of shape (n, n)
        Kernel matrix of all rows.
    train : Tensor of int of shape (n_train,)
        Distinct row numbers.
    ridge : float
        Ridge.
    weights : Tensor of shape (n_train,)
        Positive row weights, which divide the ridge.
    memory_limit : "auto" or number of bytes
        Budget for the fold's factor.
    """
    kernel = MatrixKernel(gram)
    return TangentFrame(
        kernel, kernel.rows(train), ridge=ridge, weights=weights, memory_limit=memory_limit
    )


@full_precision()
def fold_held_out(frame: TangentFrame, held_out: Tensor, targets: Tensor) -> HeldOut:
    """Train on some rows of a kernel matrix and predict others.

    Parameters
    ----------
    frame : TangentFrame
        Of the rows to train on, by `fold_frame`.
    held_out : Tensor of int of shape (m,)
        Row numbers. A row may be among those to train on too, where copies of it are.
    targets : Tensor of shape (n_train, C) or (n_train, C, K)
    """
    kernel = frame.kernel
    assert isinstance(kernel, MatrixKernel)
    gram, train = kernel.matrix, frame.X[:, 0].long()
    q, coefficients = frame.coordinates(targets), frame.solve(targets)
    columns = coefficients.reshape(len(train), -1)
    logits = columns.new_empty((len(held_out), columns.shape[1]))
    for block in _gather_blocks(gram, len(held_out)):
        logits[block] = gram[held_out[block]][:, train] @ columns

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


def blocks_pay(n_rows: int, n_held_out: Sequence[int], *, frame_is_needed: bool) -> bool:
    """Whether `block_held_out` takes fewer operations than a factor for each fold.

    Parameters
    ----------
    n_rows : int
    n_held_out : sequence of int
        Number of rows that each fold leaves out.
    frame_is_needed : bool
        Whether the frame of all rows is needed anyway, as to refit.
    """
    by_factors = sum((n_rows - m) ** 3 / 3 for m in n_held_out)
    by_blocks = sum(n_rows**2 * m / 3 + n_rows * m**2 + m**3 / 3 for m in n_held_out)
    return by_blocks + (not frame_is_needed) * n_rows**3 / 3 < by_factors


def resolves_blocks(frame: TangentFrame) -> bool:
    """Whether the factor of all rows is accurate enough for `block_held_out`.

    The matrix of all rows may be closer to singular than the one without a fold. Near-copies in a
    fold cost no accuracy, as the small pivots they cause belong to the fold. A jitter would, and so
    would a kernel so smooth that most pivots are rounding.
    """
    return frame.jitter == 0 and frame.rcond > torch.finfo(frame.X.dtype).eps ** 0.75


class StudentInFrame(NamedTuple):
    """The student of all rows: a frame, its targets, their coordinates and squared norms."""

    frame: TangentFrame
    targets: Tensor  # (n, C) or (n, C, K)
    coordinates: Tensor  # (n, C) or (n, C, K), q = L⁻¹ Δz
    squared_norms: Tensor  # (C,)

    @classmethod
    def of(cls, frame: TangentFrame, targets: Tensor) -> Self:
        """Return the student of ``targets``."""
        q = frame.coordinates(targets)
        return cls(frame, targets, q, class_sum(q.square()).sum(dim=0))


@full_precision()
def block_held_out(student: StudentInFrame, held_out: Tensor) -> HeldOut:
    """Predict rows by the student trained on all others, without a factor of those others.

    With A = L Lᵀ, E the columns S of L⁻¹ for the rows S that are left out, a_S = (A⁻¹ Δz)_S = Eᵀ q
    and B = (A⁻¹)_SS = Eᵀ E: f₋S(x_S) = Δz_S − B⁻¹ a_S, v(x_S) = diag(B⁻¹) (with the rows' own
    ridge), and ‖Δ₋S‖² = ‖Δ‖² − a_Sᵀ B⁻¹ a_S. Beside E, of n² m / 3 operations for m rows, that is
    n m² for B and 2 n m for each column.

    Parameters
    ----------
    student : StudentInFrame
        The student of all rows.
    held_out : Tensor of int of shape (m,)
        Distinct row numbers.
    """
    frame, targets, q, squared_norms = student
    ordered, order = held_out.sort()
    inverse = frame.inverse_columns(ordered)  # Eᵀ
    lower = product(inverse, inverse.T).T  # symmetric
    is_definite = overwrite_by_factor(lower) == 0
    assert is_definite, "`resolves_blocks` holds, and its condition is at most that of A"
    half = solve_triangular(lower, product(inverse, q.reshape(frame.n_rows, -1)), upper=False)
    errors = torch.empty_like(targets[held_out])
    errors[order] = solve_triangular(lower.T, half, upper=True).reshape(errors.shape)
    lost = class_sum(half.square().reshape(errors.shape)).sum(dim=0)

    @functools.cache
    def new_directions() -> Tensor:
        unit = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        out = lower.new_empty(len(lower))
        out[order] = solve_triangular(lower, unit, upper=False).square().sum(dim=0)
        return out

    return HeldOut(
        targets[held_out] - errors,
        new_directions,
        (squared_norms - lost).clamp_min(0)[None],
        frame.n_rows - len(held_out),
    )


def leave_one_out(frame: TangentFrame, targets: Tensor) -> HeldOut:
    """Predict each row of the frame by the student trained on all the others; no refit.

    With A = L Lᵀ, a = A⁻¹ Δz and s = 1 / (A⁻¹)ᵢᵢ: f₋ᵢ(xᵢ) = Δzᵢ − aᵢ s, v(xᵢ) = s (with the row's
    own ridge) and ‖Δ₋ᵢ‖² = ‖Δ‖² − aᵢ² s.
    """
    _, _, q, total = StudentInFrame.of(frame, targets)
    a = frame.coefficients(q)
    s = 1 / frame.inverse_diagonal()
    logits = leave_one_out_logits(targets, a, s)
    squared_norms = (total - class_sum(a.square()) * s[:, None]).clamp_min(0)
    return HeldOut(logits, lambda: s, squared_norms, frame.n_rows - 1)


@full_precision()
def new_rows_held_out(student: StudentInFrame, X: Tensor) -> HeldOut:
    """Predict other rows by the student of all rows.

    Parameters
    ----------
    student : StudentInFrame
        The student of all rows.
    X : Tensor of shape (m, d)
    """
    frame, targets, q, squared_norms = student
    columns = q.reshape(frame.n_rows, -1)
    a = solve_triangular(frame.lower.T, columns, upper=True)
    logits = frame.kernel.matmat(X, frame.X, a)

    @functools.cache
    def new_directions() -> Tensor:
        values = targets.new_empty(len(X))
        for block, _, v in frame.feature_blocks(X):
            values[block] = frame.new_directions(v)
        return values

    return HeldOut(
        logits.reshape(-1, *targets.shape[1:]), new_directions, squared_norms[None], frame.n_rows
    )
