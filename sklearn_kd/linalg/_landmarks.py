"""The student restricted to M landmarks, from sums over the rows in a single pass.

Symbols (formula -> code -> shape), with n rows, M landmarks and C right-hand sides:

==========  ====================  ==========================================================
Z           ``landmarks``           (M, d) rows that span the restricted student
Θ_ZZ = RRᵀ  ``lower``             (M, M) R
Φ           `LandmarkBasis` call    (n, M) Θ(X, Z) R⁻ᵀ: φ(x) projected on the span of φ(Z)
W           ``weights``           (n,) row weights
Δz          ``targets``           (n, C) logit change, one column per candidate and class
G, r        ``gram``, ``moments`` (M, M), (M, C) ΦᵀWΦ and ΦᵀWΔz
b           ``coefficients``      (M, C) of the kernel expansion f(x) = Θ(x, Z) b
==========  ====================  ==========================================================

The student minimises Σᵢ wᵢ (f(xᵢ) − Δzᵢ)² + λ bᵀ Θ_ZZ b over f = Θ(·, Z) b (subset of regressors).
With c = Rᵀ b it is (G + λI) c = r. G and r are sums over the rows, so neither their order nor
their division into blocks matters, and copies of a row count as one row with their total weight
and their weighted mean target. With all n rows as landmarks it is the exact student.

The sums are taken in the orthonormal basis Φ. With Θ(X, Z) in its place, the condition number would
be squared: at M = n, cond(ΦᵀΦ) is cond(Θ), and cond(Θ_nZᵀ Θ_nZ) is its square. Largest relative
errors of a prediction at M = n, against an extended-precision solution:

==============================  =======  ============  ========  ============  =========
kernel, d, n                    cond Θ   exact solve   in Θ_nZ   here, in Φ    QR of Φ
==============================  =======  ============  ========  ============  =========
ReLU depth 3, d = 10, n = 300   1e4      9e-14         3e-10     7e-14         7e-14
ReLU depth 3, d = 2, n = 1000   4e6      7e-12         1e-5      7e-12         6e-12
ReLU depth 1, d = 1, n = 500    5e8      6e-10         4e-2      3e-10         4e-10
==============================  =======  ============  ========  ============  =========

Updating a QR factorization of Φ block by block takes 3.5 times as long as the sum. It is no more
accurate, as even the exact solve loses the digits that the condition of the kernel matrix costs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sklearn_kd._memory import WORKSPACE_BYTES, workspace_bytes
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._cholesky import factor_in_place, reciprocal_condition
from sklearn_kd.linalg._parts import product, solve_triangular
from sklearn_kd.linalg._pivoted_cholesky import PIVOT_BLOCK

# Groups of columns into which G is cut. The entries below its diagonal are not needed, and only
# those inside a group are computed. With more groups, the products would be too small to be fast.
_GRAM_GROUPS = 4

# 1 − h below this has lost half of its digits to the rounding of h.
_SMALLEST_REMAINDER = torch.finfo(torch.float64).eps ** 0.5


class LandmarkBasis:
    """Orthonormal basis of the span of the features of the landmarks, φ(Z) R⁻ᵀ.

    Parameters
    ----------
    kernel : KernelFunction
        The tangent kernel.
    landmarks : Tensor of shape (M, d)
        Distinct rows. Kernel entries are evaluated in their dtype, everything else is float64.

    Attributes
    ----------
    lower : Tensor of shape (M, M)
        R with Θ_ZZ = R Rᵀ, float64.
    jitter : float
        Added to the diagonal of Θ_ZZ; almost always 0. It changes the norm that the ridge
        penalises, but not the span.

    Raises
    ------
    NotPSDError
        If no admissible jitter makes Θ_ZZ positive definite.
    """

    def __init__(self, kernel: KernelFunction, landmarks: Tensor) -> None:
        self.kernel = kernel
        self.landmarks = landmarks
        rows = landmarks.double()
        storage = rows.new_empty((len(rows), len(rows)))
        self.lower, self.jitter = factor_in_place(
            lambda: kernel.gram(rows, out=storage, symmetrize=False)
        )

    @full_precision()
    def features(self, X: Tensor) -> Tensor:
        """Return Φ (n, M) for rows ``X`` of shape (n, d)."""
        cross = self.kernel.block(X, self.landmarks).double()
        return torch.linalg.solve_triangular(self.lower.T, cross, upper=True, left=False)


@dataclass
class RowSums:
    """The sums over rows that determine the restricted student.

    ``trace`` and ``captured`` are Σ Θ(x, x) and Σ ‖φ(x) projected‖² over the rows.
    """

    gram: Tensor  # (M, M) on and above the diagonal; entries below it have no meaning
    moments: Tensor  # (M, C)
    trace: Tensor  # ()
    captured: Tensor  # ()

    @classmethod
    def zeros(cls, n_landmarks: int, n_targets: int, device: torch.device) -> Self:
        """Return the sums over no rows."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zero(n_landmarks, n_landmarks), zero(n_landmarks, n_targets), zero(), zero())

    def merge(self, other: RowSums) -> None:
        """Add the sums over other rows, in the same basis."""
        for own, more in zip(vars(self).values(), vars(other).values(), strict=True):
            own += more

    @property
    def captured_trace(self) -> float:
        """Share of tr Θ that the landmarks explain, in [0, 1]; 1 is all of it."""
        return (self.captured / self.trace).item()

    @full_precision()
    def add(
        self, basis: LandmarkBasis, X: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> None:
        """Add a block of rows (n, d) with targets (n, C) and weights w ≥ 0 (n,), or 1."""
        if weights is not None and (weights == 0).any():
            kept = weights > 0
            X, targets, weights = X[kept], targets[kept], weights[kept]
        self.trace += basis.kernel.diag(X).double().sum()
        features = basis.features(X)
        self.captured += torch.linalg.vector_norm(features).square()
        if weights is not None:
            root = weights.double().sqrt()[:, None]
            features *= root
            targets = root * targets
        self.moments.addmm_(features.T, targets.double())
        n_landmarks = len(self.gram)
        width = max(1, -(-n_landmarks // _GRAM_GROUPS))
        for start in range(0, n_landmarks, width):
            columns = slice(start, start + width)
            self.gram[columns, start:].addmm_(features[:, columns].T, features[:, start:])


class RestrictedStudent:
    """The minimiser of Σᵢ wᵢ (f(xᵢ) − Δzᵢ)² + λ bᵀ Θ_ZZ b over f = Θ(·, Z) b.

    Parameters
    ----------
    basis : LandmarkBasis
    sums : RowSums
        Sums over all training rows; they are not changed.
    ridge : float, default=0.0
        Ridge λ ≥ 0.

    Attributes
    ----------
    coefficients : Tensor of shape (M, C)
        b, float64.
    weight_change_norm : float
        ‖Δ_ŵ‖₂ = √(bᵀ Θ_ZZ b), squares summed over the columns.
    jitter : float
        The largest jitter of a factorization; almost always 0.
    rcond : float
        Estimate of 1 / cond₁(G + λI).

    Raises
    ------
    NotPSDError
        If G + λI is not positive definite, beyond rounding.

    Warns
    -----
    IllConditionedWarning
        If a jitter was needed, or ``rcond`` is below the resolution of float64.

    Examples
    --------
    Fifty rows, all of them landmarks: the restricted student is the exact one.

    >>> import torch
    >>> from sklearn_kd.kernels import NTK
    >>> from sklearn_kd.linalg import TangentFrame
    >>> from sklearn_kd.linalg._landmarks import LandmarkBasis, RestrictedStudent, RowSums
    >>> X = torch.linspace(-2, 2, 100, dtype=torch.float64).reshape(50, 2)
    >>> targets, kernel = X.sin(), NTK().to_torch()
    >>> basis, sums = LandmarkBasis(kernel, X), RowSums.zeros(50, 2, X.device)
    >>> for rows in torch.arange(50).split(20):
    ...     sums.add(basis, X[rows], targets[rows])
    >>> student = RestrictedStudent(basis, sums)
    >>> torch.allclose(student.coefficients, TangentFrame(kernel, X).solve(targets), rtol=1e-6)
    True
    >>> round(sums.captured_trace, 12)
    1.0
    """

    @full_precision()
    def __init__(self, basis: LandmarkBasis, sums: RowSums, ridge: float = 0.0) -> None:
        self.basis = basis
        self.ridge = ridge
        storage = torch.empty_like(sums.gram)

        def assemble() -> Tensor:
            storage.copy_(sums.gram)
            storage.diagonal().add_(ridge)
            return storage

        # G + λI = S Sᵀ
        self.lower, jitter = factor_in_place(assemble)
        self.jitter = max(jitter, basis.jitter)
        self.rcond = reciprocal_condition(self.lower)
        half = solve_triangular(self.lower, sums.moments, upper=False)
        c = solve_triangular(self.lower.T, half, upper=True)
        self.coefficients = solve_triangular(basis.lower.T, c, upper=True)
        self.weight_change_norm = torch.linalg.vector_norm(c).item()
        self._warn_if_ill_conditioned()

    @functools.cached_property
    def _both(self) -> Tensor:
        """R S (M, M), lower triangular: φᵀ (G + λI)⁻¹ φ = ‖(R S)⁻¹ Θ(Z, x)‖²."""
        return product(self.basis.lower, self.lower)

    def _warn_if_ill_conditioned(self) -> None:
        if self.jitter > 0 or self.rcond < torch.finfo(torch.float64).eps:
            warn(
                f"The student restricted to {len(self.basis.landmarks)} landmarks is numerically "
                f"singular (rcond {self.rcond:.2g}, jitter {self.jitter:.2g}): rounding decides "
                "part of the answer. Use ridge > 0 or a smaller n_landmarks.",
                IllConditionedWarning,
            )

    @full_precision()
    def fit_and_remainder(self, X: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f(x) (n, C), and 1 − h (n,) with h = w φᵀ (G + λI)⁻¹ φ, φ a row of Φ.

        h is the derivative of f(xᵢ) in Δzᵢ. 1 − h is returned as 0 where rounding leaves less
        than half of its digits.
        """
        cross = self.basis.kernel.block(X, self.basis.landmarks).double()
        logits = cross @ self.coefficients
        half = torch.linalg.solve_triangular(self._both.T, cross, upper=True, left=False)
        leverage = half.square_().sum(dim=1)
        if weights is not None:
            leverage *= weights
        remainder = 1 - leverage
        return logits, torch.where(remainder > _SMALLEST_REMAINDER, remainder, 0.0)

    def leave_one_out(self, X: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return, for each training row, the prediction of the student trained on all others.

        f₋ᵢ(xᵢ) = Δzᵢ − (Δzᵢ − f(xᵢ)) / (1 − hᵢ). The landmarks do not change: a row that is a
        landmark is left out of the loss only. Over all rows this is a second pass. It evaluates
        their kernel entries again, and takes M² operations per row for h. The first pass takes
        over 2 M².

        Parameters
        ----------
        X : Tensor of shape (m, d)
            Rows that the student was trained on.
        targets : Tensor of shape (m, C)
        weights : Tensor of shape (m,), default=None
            The weights used in the sums.

        Notes
        -----
        Where h = 1, the loss without the row has many minimisers. This happens at λ = 0 with as
        many landmarks as rows, or where a landmark is far from all other rows. The minimiser of
        least norm is used, the limit λ → 0.
        """
        logits, remainder = self.fit_and_remainder(X, weights)
        alone = (remainder == 0).nonzero()[:, 0]
        out = targets - (targets - logits) / torch.where(remainder > 0, remainder, 1)[:, None]
        if len(alone):
            own = None if weights is None else weights[alone]
            out[alone] = logits[alone] - self._own_share(X[alone], own)
        return out

    @full_precision()
    def _own_share(self, X: Tensor, weights: Tensor | None) -> Tensor:
        """Return what rows with h = 1 contribute to their own predictions, (m, C).

        G − w φ φᵀ then has the null vector v = G⁻¹ φ, with φᵀ v = 1 / w. Without its part of c,
        v vᵀ c / vᵀ v, the prediction is φᵀ c − (vᵀ c) / (w vᵀ v).
        """
        cross = self.basis.kernel.block(X, self.basis.landmarks).double()
        half = torch.linalg.solve_triangular(self._both.T, cross, upper=True, left=False)
        v = torch.linalg.solve_triangular(self.lower, half, upper=False, left=False)
        c = self.basis.lower.T @ self.coefficients
        scale = v.square().sum(dim=1)
        if weights is not None:
            scale *= weights
        return v @ c / scale[:, None]


def block_rows(n_landmarks: int) -> int:
    """Return the rows per block of the pass: 64 MiB of features, at least 256 rows."""
    return max(256, WORKSPACE_BYTES // (8 * n_landmarks))


def nystrom_bytes(
    n_rows: int,
    n_features: int,
    n_landmarks: int,
    n_targets: int,
    n_candidates: int,
    device: torch.device,
) -> int:
    """Return the peak bytes of choosing landmarks among candidate rows, of the pass and the solve.

    The pass holds R, G and a block of features, twice, with its targets. The solve holds a factor
    of G, and copies of the coefficients. The choice holds a partial factor of the candidates'
    kernel. Threads and matrix products kept up to 75 MiB of their own on two cores.
    """
    block = min(n_rows, block_rows(n_landmarks))
    choice = n_candidates * (n_landmarks + 4 * PIVOT_BLOCK + 2 * n_features)
    sums = n_landmarks * (2 * n_landmarks + n_features + n_targets)
    rows = block * (2 * n_landmarks + n_features + 4 * n_targets)
    solve = n_landmarks * (n_landmarks + 3 * n_targets)
    return 8 * max(choice, sums + max(rows, solve)) + 2 * workspace_bytes(device)
