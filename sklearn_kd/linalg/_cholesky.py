"""Cholesky factorization of a kernel matrix in place, with a stated and bounded jitter.

A = L Lᵀ. The upper triangle of the row-major storage is the lower triangle of its column-major
transpose, which is factored in place: no second n² array. On a CPU this goes block by block, so
that Ctrl-C is answered in between.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lobpcg
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd._memory import WORKSPACE_BYTES
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.linalg._parts import OPERATIONS_PER_CALL, parts

# Largest jitter tried, relative to the mean diagonal.
MAX_RELATIVE_JITTER = {torch.float64: 1e-8, torch.float32: 1e-4}

# A jitter is too small if it leaves fewer than two correct digits. With rcond near ε, the order of
# the rows changed logits by several times their size; with rcond near 100 ε, by a hundredth.
LEAST_RCOND_WITH_JITTER = 100  # in units of ε

_EXACT_EIGENVALUE_ROWS = 1000

# Rows that LAPACK factors in one call, under half a second. Above, columns go by blocks: as fast as
# one call for all, or faster.
_ROWS_PER_CALL = 2048
_BLOCK_COLUMNS = 512
# Columns of a diagonal block that are updated together; the entries above it are not needed.
_CORNER_COLUMNS = 256
# Rows that are updated together, at most: the solver copies them.
_PANEL_ROWS = 4096


class Factor(NamedTuple):
    """L (n, n), column-major, and the jitter added to the diagonal."""

    lower: Tensor
    jitter: float


def factor_in_place(assemble: Callable[[], Tensor]) -> Factor:
    """Factor A + jitter·I = L Lᵀ in the storage that ``assemble`` fills.

    Parameters
    ----------
    assemble : callable
        Writes A, at least its upper triangle, into the same (n, n) row-major tensor at each call,
        and returns that tensor. Called once, and once more per jitter tried.

    Raises
    ------
    NotPSDError
        If no admissible jitter makes A positive definite. The jitters tried are 0, then
        10·ε·mean(diag A) and 100 times more at each try, up to 1e-8 (float64) or 1e-4
        (float32) times mean(diag A). A jitter is accepted if A is then positive definite with
        a reciprocal condition of at least 100 ε. For the largest jitter, positive
        definiteness suffices.
    """
    matrix = assemble()
    scale = matrix.diagonal().mean().item()
    epsilon = torch.finfo(matrix.dtype).eps
    largest = MAX_RELATIVE_JITTER[matrix.dtype] * scale
    if not matrix.diagonal().isfinite().all():  # LAPACK factors an infinite pivot
        raise NotPSDError(_not_psd_message(matrix, 0.0))
    jitter = 0.0
    while True:
        if jitter > 0:
            matrix.diagonal().add_(jitter)
        if overwrite_by_factor(matrix.T) == 0:
            is_final = jitter == 0 or not jitter < largest
            if is_final or reciprocal_condition(matrix.T) >= LEAST_RCOND_WITH_JITTER * epsilon:
                return Factor(matrix.T, jitter)
        matrix = assemble()
        if not jitter < largest:
            raise NotPSDError(_not_psd_message(matrix, jitter))
        jitter = min(max(10 * epsilon * scale, 100 * jitter), largest)


@full_precision()
def overwrite_by_factor(A: Tensor) -> int:
    """Overwrite A (n, n), column-major, by L with A = L Lᵀ, from the lower triangle of A.

    Returns 0 or, if A is not positive definite, the order of a leading minor that is not; then A
    is undefined.
    """
    n = len(A)
    if A.device.type != "cpu" or n <= _ROWS_PER_CALL:
        info = torch.empty((), dtype=torch.int32, device=A.device)
        torch.linalg.cholesky_ex(A, out=(A, info))
        return int(info.item())
    # With j the columns of a block, i the rows below it, and k all columns before it:
    # L_jj L_jjᵀ = A_jj − L_jk L_jkᵀ and L_ij = (A_ij − L_ik L_jkᵀ) L_jj⁻ᵀ.
    for start in range(0, n, _BLOCK_COLUMNS):
        stop = min(start + _BLOCK_COLUMNS, n)
        known = A[start:stop, :start]
        corner = A[start:stop, start:stop]
        for first in range(0, stop - start, _CORNER_COLUMNS):
            some = slice(first, first + _CORNER_COLUMNS)
            corner[first:, some].addmm_(known[first:], known[some].T, alpha=-1)
        lower, info = torch.linalg.cholesky_ex(corner)
        if info.item() != 0:
            return start + int(info.item())
        corner.copy_(lower)
        A[:start, start:stop] = 0
        for rows in _panels(stop, n, start * len(corner), A.device):
            panel = A[rows, start:stop]
            panel.addmm_(A[rows, :start], known.T, alpha=-1)
            torch.linalg.solve_triangular(lower.T, panel, upper=True, left=False, out=panel)
    return 0


def _panels(start: int, stop: int, operations: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of the rows from ``start`` to before ``stop``, of ``operations`` each."""
    operations = max(operations, OPERATIONS_PER_CALL // _PANEL_ROWS)
    for rows in parts(stop - start, operations, device):
        yield slice(start + rows.start, start + rows.stop)


def reciprocal_condition(lower: Tensor) -> float:
    """Estimate 1 / cond₁(A) = 1 / (‖A‖₁ ‖A⁻¹‖₁) from A = L Lᵀ, in O(n²).

    0 where either norm leaves the range of the dtype: A is singular to working precision.
    """

    def multiply(x: Tensor) -> Tensor:
        return lower @ (lower.T @ x)

    def solve(x: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(lower, x[:, None], upper=False)
        return torch.linalg.solve_triangular(lower.T, half, upper=True)[:, 0]

    start = lower.new_full((len(lower),), 1 / len(lower))
    condition = one_norm_estimate(multiply, start) * one_norm_estimate(solve, start)
    return 1 / condition if condition > 0 else 0.0


def one_norm_estimate(apply: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Estimate ‖B‖₁ from below for a symmetric B given by x ↦ B x, starting at ``x``.

    Hager's ascent with Higham's safeguard, as in LAPACK's pocon; deterministic.
    """
    n = len(x)
    estimate = 0.0
    # ‖B x‖₁ is convex on the unit ball, so it is largest at a unit vector; climb to one.
    for _ in range(5):
        image = apply(x)
        norm = image.abs().sum().item()
        if not norm > estimate:
            break
        estimate = norm
        gradient = apply(torch.where(image >= 0, 1.0, -1.0).to(image))
        steepest = gradient.abs().argmax()
        if gradient[steepest].abs() <= gradient @ x:
            break
        x = torch.zeros_like(x)
        x[steepest] = 1
    # Alternating signs of growing size catch the matrices on which the ascent stops early.
    alternating = 1 + torch.arange(n, dtype=x.dtype, device=x.device) / max(n - 1, 1)
    alternating[1::2] *= -1
    return max(estimate, 2 * apply(alternating).abs().sum().item() / (3 * n))


def _not_psd_message(matrix: Tensor, jitter: float) -> str:
    if not all(corner.isfinite().all() for _, corner in _upper_rows(matrix)):
        return (
            "The kernel matrix with its ridge holds NaN or infinite values; rescale the inputs, or "
            "use a smaller ridge / sample_weight."
        )
    smallest = smallest_eigenvalue(matrix)
    return (
        f"The kernel matrix of {len(matrix)} rows is not positive definite: its smallest "
        f"eigenvalue is about {smallest:.3g} (mean diagonal {matrix.diagonal().mean():.3g}), and a "
        f"jitter of {jitter:.3g} did not help. Either the kernel is not positive semi-definite, "
        "or rows are so close that rounding decides: use ridge > 0, remove near-duplicate rows, "
        "or use dtype='float64'."
    )


def smallest_eigenvalue(matrix: Tensor) -> float:
    """Estimate λ_min of a symmetric matrix from its upper triangle.

    Exact for up to 1000 rows. For more, an upper bound: a Rayleigh quotient after a few LOBPCG
    steps.
    """
    n = len(matrix)
    if n <= _EXACT_EIGENVALUE_ROWS:
        return torch.linalg.eigvalsh(matrix, UPLO="U")[0].item()

    def multiply(vectors: np.ndarray) -> np.ndarray:
        V = torch.as_tensor(vectors, dtype=matrix.dtype, device=matrix.device)
        product = torch.zeros_like(V)
        for start, corner in _upper_rows(matrix):
            own = slice(start, start + len(corner))
            product[own] += corner @ V[start:]
            product[own.stop :] += corner[:, len(corner) :].T @ V[own]
            product[own] += corner[:, : len(corner)].triu(1).T @ V[own]
        return to_numpy(product)

    operator = LinearOperator((n, n), matvec=multiply, matmat=multiply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal((n, 1))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it is not exact
        values, _ = lobpcg(operator, start, largest=False, maxiter=30)
    return float(values[0])


def _upper_rows(matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the upper triangle from row ``start`` on, few rows at a time: (start, its copy)."""
    step = max(1, WORKSPACE_BYTES // (len(matrix) * matrix.element_size()))
    for start in range(0, len(matrix), step):
        yield start, matrix[start : start + step, start:].triu()
