"""The tangent frame: an orthonormal frame in which training-set sizes are prefixes.

Symbols (paper -> code -> shape), with n distinct training rows and K classes:

=============  ==============  ===========================================================
Θ_n            ``kernel``      (n, n) tangent kernel of the rows
L              ``lower``       (n, n) Θ_n + λ W⁻¹ = L Lᵀ
Δz             ``targets``     (n,) or (n, K) logit change, z_eff − z₀
q              coordinates     (n,) or (n, K) L⁻¹ Δz: Δ_ŵ in the frame
u, v           features        (m, n), (m,) φ(x) in the frame, squared norm of the remainder
=============  ==============  ===========================================================

The columns of φ(X) L⁻ᵀ are orthonormal and row i adds exactly axis i, so the student trained on
the first m rows is ``q[:m]``. With a ridge λ, or weights W, the frame is that of the augmented
features [φ(xᵢ), √(λ/wᵢ) eᵢ], and all statements hold for the ridge student. A noise ν of the
kernel, as of a WhiteKernel, adds to the ridge: λ + ν.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sklearn_kd._memory import CPU, MEMORY_REMEDY, require, workspace_bytes
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import IllConditionedWarning
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.kernels._tiles import kernel_bytes
from sklearn_kd.linalg._checks import (
    require_kernel_function,
    require_rows,
    require_targets,
    require_tensor,
)
from sklearn_kd.linalg._cholesky import factor_in_place, reciprocal_condition
from sklearn_kd.linalg._parts import parts, solve_triangular
from sklearn_kd.linalg._running_sum import running_sum

# Copies of the right-hand sides that a solve works with.
_COLUMN_COPIES = 6

# Rows of L⁻¹ that are computed at a time.
_SUBSTITUTION_ROWS = 256

# A difference of two terms below this share of them has lost half of its digits.
_CANCELLED = 1e-7


class TangentFrame:
    """Orthonormal frame of the span of the training features, L with Θ_n + λ W⁻¹ = L Lᵀ.

    Parameters
    ----------
    kernel : KernelFunction
        The tangent kernel, a function of tensors.
    X : Tensor of shape (n, d)
        Distinct training rows; their dtype and device are the frame's.
    ridge : float, default=0.0
        Ridge λ ≥ 0.
    weights : Tensor of shape (n,), default=None
        Positive row weights w, which divide the ridge: λ / wᵢ. None means 1.
    gram : Tensor of shape (n, n), default=None
        The kernel matrix of ``X`` if it is known; it is copied. None: computed.
    memory_limit : "auto" or number of bytes, default="auto"
        Budget for the n² factor.

    Attributes
    ----------
    noise : float
        The kernel's own noise ν ≥ 0, which adds to the ridge.
    jitter : float
        Added to the diagonal for the factorization to succeed; almost always 0.
    rcond : float
        Estimate of 1 / cond₁(L Lᵀ).

    Raises
    ------
    MemoryBudgetError
        If the factor does not fit the budget; nothing is allocated then.
    NotPSDError
        If no admissible jitter makes the kernel matrix positive definite.

    Warns
    -----
    IllConditionedWarning
        If a jitter was needed, or ``rcond`` is below the dtype's resolution.

    Examples
    --------
    Three rows, and the predictions of students trained on the first one, two and three of them:

    >>> import torch
    >>> from sklearn_kd.kernels import NTK
    >>> from sklearn_kd.linalg import TangentFrame
    >>> X = torch.tensor([[0.0], [1.0], [2.0]]).double()
    >>> frame = TangentFrame(NTK(depth=1).to_torch(), X)
    >>> targets = torch.tensor([0.0, 1.0, 2.0]).double()
    >>> frame.prefix_predictions(X[1:], targets)
    tensor([[0.0000, 0.0000],
            [1.0000, 1.6775],
            [1.0000, 2.0000]], dtype=torch.float64)
    >>> frame.loo(targets)
    tensor([0.3067, 0.9712, 1.6775], dtype=torch.float64)
    """

    @full_precision()
    def __init__(
        self,
        kernel: KernelFunction,
        X: Tensor,
        *,
        ridge: float = 0.0,
        weights: Tensor | None = None,
        gram: Tensor | None = None,
        memory_limit: float | str = "auto",
    ) -> None:
        require_kernel_function(kernel)
        require_tensor(X, "X")
        n, d = X.shape
        require(
            frame_bytes(n, d, 1, X.dtype, X.device),
            memory_limit,
            X.device,
            what=f"Factoring the kernel matrix of n={n} distinct rows",
            remedy=MEMORY_REMEDY,
        )
        self.kernel = kernel
        self.X = X
        self.ridge = ridge
        self.noise = kernel.noise(X)
        self.weights = X.new_ones(n) if weights is None else weights
        self.lower, self.jitter = factor_in_place(self._assembler(gram))
        self.rcond = reciprocal_condition(self.lower)
        self.warn_if_ill_conditioned()

    def _assembler(self, gram: Tensor | None = None) -> Callable[[], Tensor]:
        storage = self.X.new_empty((len(self.X), len(self.X)))

        def assemble() -> Tensor:
            if gram is None:
                self.kernel.gram(self.X, out=storage, symmetrize=False)
            else:
                storage.copy_(gram)
            storage.diagonal().add_((self.ridge + self.noise) / self.weights)
            return storage

        return assemble

    def warn_if_ill_conditioned(self) -> None:
        """Warn with `IllConditionedWarning` if rounding decides part of the answers."""
        epsilon = torch.finfo(self.X.dtype).eps
        if self.jitter > 0 or self.rcond < epsilon:
            pivot = self.lower.diagonal().min().item() ** 2
            warn(
                f"The kernel matrix of {self.n_rows} rows is numerically singular (rcond "
                f"{self.rcond:.2g}, smallest pivot {pivot:.2g}, jitter {self.jitter:.2g}): "
                "rounding decides part of the answer. Use ridge > 0, remove near-duplicate "
                "rows, or a deeper or less smooth kernel.",
                IllConditionedWarning,
            )

    @property
    def n_rows(self) -> int:
        """Number of training rows, n."""
        return len(self.X)

    @property
    def row_ridges(self) -> Tensor:
        """What L Lᵀ holds beside the kernel on its diagonal, (λ + ν) / w and the jitter, (n,)."""
        return (self.ridge + self.noise) / self.weights + self.jitter

    @full_precision()
    def coordinates(self, targets: Tensor) -> Tensor:
        """Return q = L⁻¹ Δz: the weight change of the student in the frame.

        ``q[:m]`` is the weight change of the student trained on the first m rows. Raises
        `ValueError` if ‖q‖² overflows, as it does for kernel values near the smallest numbers.
        """
        require_targets(targets, self.X)
        columns = targets.reshape(self.n_rows, -1)
        q = solve_triangular(self.lower, columns, upper=False)
        self._require_finite(q.square().sum())
        return q.reshape(targets.shape)

    @full_precision()
    def solve(self, targets: Tensor) -> Tensor:
        """Return the dual coefficients (Θ_n + λ W⁻¹)⁻¹ Δz (Eq. 4)."""
        return self.coefficients(self.coordinates(targets))

    @full_precision()
    def coefficients(self, coordinates: Tensor) -> Tensor:
        """Return the dual coefficients L⁻ᵀ q of the student with coordinates q."""
        columns = coordinates.reshape(self.n_rows, -1)
        coefficients = solve_triangular(self.lower.T, columns, upper=True)
        self._require_finite(coefficients)
        return coefficients.reshape(coordinates.shape)

    def _require_finite(self, values: Tensor) -> None:
        if not values.isfinite().all():
            largest = self.lower.diagonal().max().item() ** 2
            raise ValueError(
                f"Solving with the kernel matrix leaves the range of {self.X.dtype}: its pivots "
                f"are at most {largest:.3g}, against targets of order one. Scale the inputs so "
                "that kernel values are of order one."
            )

    def weight_change_norm(self, targets: Tensor, coefficients: Tensor) -> float:
        """Return ‖Δ_ŵ‖₂ = √(aᵀ Θ_n a), squares summed over the classes.

        Parameters
        ----------
        targets, coefficients : Tensor of shape (n,) or (n, K)
            Δz, and a = `solve` (Δz).
        """
        # aᵀ Θ a = aᵀ Δz − aᵀ (λ W⁻¹ + jitter) a; without a ridge just aᵀ Δz = ‖q‖².
        a = coefficients.reshape(self.n_rows, -1)
        along_ridge = self.row_ridges[:, None] * a
        total = (a * targets.reshape(self.n_rows, -1)).sum()
        squared = total - (a * along_ridge).sum()
        if squared < _CANCELLED * total:  # a ridge far above the kernel leaves no digits
            squared = (a * self.kernel.matmat(self.X, self.X, a)).sum()
        return squared.clamp_min(0).sqrt().item()

    @full_precision()
    def features(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return φ(x) in the frame: u = L⁻¹ Θ(X_fit, x), and v(x) = Θ(x, x) − ‖u‖².

        Parameters
        ----------
        X : Tensor of shape (m, d)

        Returns
        -------
        u : Tensor of shape (m, n)
        v : Tensor of shape (m,)
            Squared norm of the part of φ(x) outside the frame. It is the difference of two numbers
            of size Θ(x, x), with a rounding error of n·ε·Θ(x, x). Below that it is returned as 0:
            to working precision x adds no direction.
        """
        require_rows(X, self.X)
        cross = self.kernel.block(self.X, X)
        u = torch.linalg.solve_triangular(self.lower, cross, upper=False).T
        squared_norm = self.kernel.diag(X)
        v = squared_norm - u.square().sum(dim=1)
        resolution = self.n_rows * torch.finfo(v.dtype).eps * squared_norm
        return u, torch.where(v > resolution, v, torch.zeros_like(v))

    def new_directions(self, v: Tensor) -> Tensor:
        """Return the squared norm that new rows of weight 1 add to the frame, from v of `features`.

        The ridge of a new row lies along its axis, unless the row adds no axis at all.
        """
        return torch.where(v > 0, v + self.ridge + self.noise + self.jitter, v)

    def feature_blocks(self, X: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (rows, u, v) of `features` for consecutive blocks of ``X``, in bounded memory."""
        require_rows(X, self.X)
        step = max(1, workspace_bytes(X.device) // (2 * self.n_rows * X.dtype.itemsize))
        for start in range(0, len(X), step):
            rows = slice(start, min(start + step, len(X)))
            yield rows, *self.features(X[rows])

    def prefix_norms(self, targets: Tensor) -> Tensor:
        """Return ‖Δ_ŵ,m‖₂ for m = 1…n, shape (n,); squares are summed over the classes."""
        squares = self.coordinates(targets).reshape(self.n_rows, -1).square().sum(dim=1)
        return running_sum(squares).sqrt()

    def prefix_steps(
        self, X: Tensor, targets: Tensor, sizes: Sequence[int]
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """Walk through f_m(x) − z₀(x) = u[:m] @ q[:m], one training-set size m after the other.

        Call it inside `full_precision`; entering that at each step would be too slow.

        Parameters
        ----------
        X : Tensor of shape (m, d)
        targets : Tensor of shape (n, ...)
            Any number of right-hand sides.
        sizes : increasing sequence of int
            Training-set sizes in 1…n.

        Yields
        ------
        position : int
            Index into ``sizes``.
        rows : slice
            Block of rows of ``X``; every block passes through all sizes before the next one.
        logits : Tensor of shape (n_block_rows, ...)
            Overwritten at the next step.
        """
        q = self.coordinates(targets)
        columns = q.reshape(self.n_rows, -1).T
        for rows, u, _ in self.feature_blocks(X):
            # One row per column of q: sums over the rows of X then run through memory in order.
            logits = columns.new_zeros((len(columns), len(u)))
            view = logits.reshape(*q.shape[1:], len(u)).movedim(-1, 0)
            start = 0
            for position, size in enumerate(sizes):
                logits.addmm_(columns[:, start:size], u[:, start:size].T)
                yield position, rows, view
                start = size

    @full_precision()
    def prefix_predictions(
        self, X: Tensor, targets: Tensor, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """Return f_m(x) − z₀(x) = u[:m] @ q[:m] for each training-set size m.

        Parameters
        ----------
        X : Tensor of shape (m, d)
        targets : Tensor of shape (n, ...)
        sizes : increasing sequence of int, default=None
            Training-set sizes; None means 1…n.

        Returns
        -------
        Tensor of shape (n_sizes, m, ...)
        """
        require_targets(targets, self.X)
        require_rows(X, self.X)
        sizes = range(1, self.n_rows + 1) if sizes is None else sizes
        out = targets.new_empty((len(sizes), len(X), *targets.shape[1:]))
        for position, rows, logits in self.prefix_steps(X, targets, sizes):
            out[position, rows] = logits
        return out

    @full_precision()
    def prefix_ridge_shares(self, targets: Tensor) -> Tensor:
        """Return Σ_{i<m} ridgeᵢ aᵢ² for m = 1…n, shape of ``targets``; a = (L_m L_mᵀ)⁻¹ Δz[:m].

        It is the share of ‖q[:m]‖² that lies along the axes of the ridge: the weight change alone
        has the squared norm ‖q[:m]‖² − share. 0 without ridge and jitter.
        """
        row_ridges = self.row_ridges
        if not row_ridges.any():
            return torch.zeros_like(targets)
        q = self.coordinates(targets)
        columns = q.reshape(self.n_rows, -1)
        shares = torch.zeros_like(columns)
        # a_m = L_m⁻ᵀ q[:m] = Σ_{j<m} q[j] r_j with r_j the columns of L⁻ᵀ, which end at row j.
        coefficients = torch.zeros_like(columns)
        step = max(1, workspace_bytes(q.device) // (4 * self.n_rows * columns.dtype.itemsize))
        for start in range(0, self.n_rows, step):
            stop = min(start + step, self.n_rows)
            unit = columns.new_zeros((stop, stop - start))
            unit[start:].fill_diagonal_(1)
            inverse = torch.linalg.solve_triangular(self.lower[:stop, :stop].T, unit, upper=True)
            for column in range(columns.shape[1]):
                path = running_sum(inverse * columns[start:stop, column], dim=1)
                path += coefficients[:stop, column, None]
                coefficients[:stop, column] = path[:, -1]
                shares[start:stop, column] = row_ridges[:stop] @ path.square_()
        return shares.reshape(q.shape)

    def one_step_errors(self, targets: Tensor) -> Tensor:
        """Return each row's error under the student trained on the rows before it.

        Δz_{m+1} − f_m(x_{m+1}) = L[m, m] q[m] for m = 0…n−1.
        """
        q = self.coordinates(targets)
        return q * self.lower.diagonal().reshape(-1, *[1] * (q.ndim - 1))

    @full_precision()
    def loo(self, targets: Tensor) -> Tensor:
        """Return each row's prediction by the student trained on all the other rows."""
        return leave_one_out_logits(targets, self.solve(targets), 1 / self.inverse_diagonal())

    def inverse_diagonal(self) -> Tensor:
        """Return diag(A⁻¹): the squared column norms of L⁻¹, a block of columns at a time."""
        n = self.n_rows
        out = self.lower.new_empty(n)
        step = max(1, workspace_bytes(out.device) // (2 * n * self.lower.dtype.itemsize))
        for rows in torch.arange(n, device=out.device).split(step):
            out[rows] = torch.linalg.vector_norm(self.inverse_columns(rows), dim=1).square()
        return out

    @full_precision()
    def inverse_columns(self, rows: Tensor) -> Tensor:
        """Return the columns of L⁻¹ of increasing row numbers (m,), transposed: (m, n).

        About n² m / 3 operations.
        """
        # Forward substitution by blocks. Column j of L⁻¹ begins at row j, so each block needs only
        # the columns that begin before its end. A library solver cannot use this without copies of
        # the corners of L.
        inverse = self.lower.new_zeros((len(rows), self.n_rows))
        inverse[torch.arange(len(rows), device=rows.device), rows] = 1
        first = int(rows[0])
        for start in range(first, self.n_rows, _SUBSTITUTION_ROWS):
            block = slice(start, start + _SUBSTITUTION_ROWS)
            part = inverse[: int((rows < block.stop).sum()), block]
            known = inverse[: len(part), first:start]
            left = self.lower[block, first:start].T
            for some in parts(len(part), left.numel(), part.device):
                part[some].addmm_(known[some], left, alpha=-1)
            corner = self.lower[block, block]
            part.copy_(torch.linalg.solve_triangular(corner, part.T, upper=False).T)
        return inverse


def leave_one_out_logits(targets: Tensor, coefficients: Tensor, s: Tensor) -> Tensor:
    """Return f₋ᵢ(xᵢ) = Δzᵢ − aᵢ sᵢ, the prediction for each row by the student of all the others.

    Parameters
    ----------
    targets, coefficients : Tensor of shape (n, ...)
        Δz, and a = A⁻¹ Δz with A = L Lᵀ.
    s : Tensor of shape (n,)
        1 / (A⁻¹)ᵢᵢ, the squared norm that row i adds to the others, with its ridge.
    """
    return targets - coefficients * s.reshape(-1, *[1] * (targets.ndim - 1))


def frame_bytes(
    n_rows: int,
    n_features: int,
    n_targets: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> int:
    """Return the peak bytes of building a tangent frame and solving for ``n_targets`` columns.

    The factor overwrites the kernel matrix (n²). A copy of the rows, the targets and their work
    copies add to it.
    """
    columns = n_rows * _COLUMN_COPIES * n_targets
    return kernel_bytes(n_rows, n_rows, n_features, dtype, device) + columns * dtype.itemsize
