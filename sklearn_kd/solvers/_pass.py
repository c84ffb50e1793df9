"""One pass over a stream of rows: the student restricted to a few landmarks, for a whole grid.

Choosing the landmarks, the pass, which can be interrupted and resumed, and what is reported beside
the answer. The algebra is in `linalg._nystrom`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

from sklearn_kd._array import to_numpy
from sklearn_kd._memory import require
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._landmarks import (
    LandmarkBasis,
    RestrictedStudent,
    RowSums,
    block_rows,
    nystrom_bytes,
)
from sklearn_kd.linalg._operator import TiledOperator
from sklearn_kd.linalg._pivoted_cholesky import randomly_pivoted_cholesky
from sklearn_kd.rows._copies import merge_rows
from sklearn_kd.rows._streams import RowStream
from sklearn_kd.solvers._checkpoint import Checkpoint, PassState, Probes

# Landmarks are chosen among at most so many rows per landmark, drawn at random.
CANDIDATES_PER_LANDMARK = 10

# A worker is sent so many rows per landmark at a time: its M² sums then cost little to send back.
ROWS_PER_TASK = 16

# Rows on which the gaps are measured, and by which a resumed pass knows its data again.
N_PROBES = 1000

NYSTROM_REMEDY = "Use a smaller n_landmarks, fewer candidates at once, or raise memory_limit."


def candidate_rows(n_rows: int, n_landmarks: int) -> int:
    """Return the number of rows among which that many landmarks are chosen."""
    return min(n_rows, CANDIDATES_PER_LANDMARK * n_landmarks)


@dataclass(frozen=True)
class StreamedRows:
    """Training rows that are read block by block, with what they are to be fitted to.

    Parameters
    ----------
    stream : RowStream
        The rows.
    targets : callable
        ``targets(rows)`` returns Δz of these rows, (b, ...), for a slice or a tensor of row
        numbers: one trailing entry per candidate (ρ, T) and class.
    weights : Tensor of shape (n,), default=None
        Row weights; rows of weight 0 do not count. None means 1.
    """

    stream: RowStream
    targets: Callable[[slice | Tensor], Tensor]
    weights: Tensor | None = None

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one row's Δz."""
        return tuple(self.targets(slice(0, 1)).shape[1:])

    def fitted_to(self, rows: slice | Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return Δz (b, C) and the weights (b,), float64."""
        targets = self.targets(rows)
        targets = targets.reshape(len(targets), -1).to(device, torch.float64)
        if self.weights is None:
            return targets, None
        return targets, self.weights[rows].to(device, torch.float64)

    def blocks(
        self, n_landmarks: int, dtype: torch.dtype, device: torch.device, start: int = 0
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Yield (rows, X, Δz, weights), in blocks as large as ``n_landmarks`` landmarks allow."""
        size = block_rows(n_landmarks)
        for rows, X in self.stream.blocks(size, start, dtype=dtype, device=device):
            yield rows, X, *self.fitted_to(rows, device)

    def between(self, start: int, stop: int) -> StreamedRows:
        """Return the rows from ``start`` on, before ``stop``, with no more than is theirs."""
        rows = slice(start, stop)
        # Clones: the pickle of a view would hold all of its base.
        targets = self.targets(rows).clone()
        weights = None if self.weights is None else self.weights[rows].clone()
        return StreamedRows(self.stream.between(start, stop), targets.__getitem__, weights)

    def sample(self, size: int, random_state: np.random.RandomState) -> np.ndarray:
        """Return increasing numbers of at most ``size`` rows of positive weight, at random."""
        if self.weights is None:
            return _sample(self.stream.n_rows, size, random_state)
        eligible = np.flatnonzero(to_numpy(self.weights > 0))
        return eligible[_sample(len(eligible), size, random_state)]

    def take(self, numbers: np.ndarray, dtype: torch.dtype, device: torch.device) -> Probes:
        """Return the rows with these increasing numbers, Δz and weights."""
        X = self.stream.take(numbers, dtype=dtype).to(device)
        return Probes(numbers, X, *self.fitted_to(torch.as_tensor(numbers), device))


@dataclass
class NystromPass:
    """The sums of a completed pass: students of any ridge follow from it without the rows."""

    basis: LandmarkBasis
    sums: RowSums
    probes: Probes
    target_shape: tuple[int, ...]
    report: Bunch


class NystromStudent(NamedTuple):
    """The restricted student, f(x) = Θ(x, landmarks) coefficients, and a report."""

    coefficients: Tensor  # (M, ...), as the targets beyond their first axis
    landmarks: Tensor  # (M, d)
    report: Bunch
    solution: RestrictedStudent


def nystrom_student(
    kernel: KernelFunction, rows: StreamedRows, *, ridge: float = 0.0, **options: Any
) -> NystromStudent:
    """Fit the student restricted to ``n_landmarks`` landmarks, in one pass over the rows.

    It minimises Σᵢ wᵢ (f(xᵢ) − Δzᵢ)² + α bᵀ Θ_ZZ b over f = Θ(·, Z) b, for all columns of Δz at
    once. The sum treats copies of a row as one row with their total weight and mean Δz. Eq. 3 is
    not linear in the labels, so where copies carry different ones, and the student is to be that
    of merged rows, ``rows.targets`` has to give each copy the Δz of the merged row.

    Parameters are the ridge ``ridge`` ≥ 0, and as ``options`` those of `nystrom_pass`.

    Returns
    -------
    NystromStudent
        See `solve_pass` for its report.
    """
    return solve_pass(nystrom_pass(kernel, rows, **options), ridge)


def nystrom_pass(
    kernel: KernelFunction,
    rows: StreamedRows,
    *,
    n_landmarks: int,
    landmarks: str = "rpcholesky",
    random_state: np.random.RandomState,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    memory_limit: float | str = "auto",
    beside: int = 0,
    checkpoint: Checkpoint | None = None,
    n_jobs: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> NystromPass:
    """Choose the landmarks and sum over all rows, a block at a time.

    Parameters
    ----------
    kernel : KernelFunction
        The tangent kernel.
    rows : StreamedRows
        The training rows.
    n_landmarks : int
        Number of landmarks M; where the candidates hold fewer distinct rows, all of those.
    landmarks : {"rpcholesky", "uniform"}, default="rpcholesky"
        How the landmarks are chosen among the distinct rows of at most 10 M candidates, which are
        drawn at random: by randomly pivoted Cholesky or uniformly.
    random_state : RandomState
        Draws the candidates, the landmarks and the probes.
    dtype : torch.dtype, default=torch.float64
        Of the kernel's entries; everything else is float64.
    device : str or torch.device, default="cpu"
        Where to compute.
    memory_limit : "auto" or number of bytes, default="auto"
        Budget, beside what the source of the rows itself holds of them.
    beside : int, default=0
        Bytes of the budget that the caller takes.
    checkpoint : Checkpoint, default=None
        File to which the sums are written at intervals, and from which a later call with the
        same rows, targets and options goes on. It is removed at the end of the pass.
    n_jobs : int, default=None
        Number of `joblib` workers that sum over spans of rows; None is 1 outside of a
        `joblib.parallel_config`. ``memory_limit`` is that of this process.
    on_progress : callable, default=None
        Called with the share of the rows that is done.

    Returns
    -------
    NystromPass
        With a report of ``n_rows``, ``n_landmarks``, ``n_candidate_rows``, ``captured_trace`` (the
        share of tr Θ that the landmarks explain), ``resumed_at_row`` and ``planned_bytes``.

    Raises
    ------
    MemoryBudgetError
        Before anything is allocated, if the plan exceeds ``memory_limit``.
    ValueError
        If rows hold NaN or infinity, or ``checkpoint`` is that of another pass.
    """
    device = torch.device(device)
    n_rows = rows.stream.n_rows
    n_landmarks = min(n_landmarks, n_rows)
    n_candidates = candidate_rows(n_rows, n_landmarks)
    shape = rows.target_shape
    n_targets = int(np.prod(shape))
    planned = nystrom_bytes(n_rows, rows.stream.n_features, n_landmarks, n_targets, n_candidates)
    n_workers = joblib.effective_n_jobs(n_jobs)
    if n_workers > 1:  # two finished spans for each worker may wait to be added
        planned += 2 * n_workers * 8 * n_landmarks * (n_landmarks + n_targets)
    planned += beside
    require(
        planned,
        memory_limit,
        device,
        what=f"The student restricted to n_landmarks={n_landmarks} landmarks, with {n_targets} "
        "right-hand sides,",
        remedy=NYSTROM_REMEDY,
    )
    state = None
    if checkpoint is not None and checkpoint.path.exists():
        state = checkpoint.load(kernel, rows.take, n_rows, n_landmarks, dtype, device)
    if state is None:
        numbers = rows.sample(N_PROBES, random_state)
        Z = _choose_landmarks(
            kernel, rows, n_landmarks, landmarks, n_candidates, random_state, dtype, device
        )
        state = PassState(
            basis=LandmarkBasis(kernel, Z),
            sums=RowSums.zeros(len(Z), n_targets, device),
            probes=rows.take(numbers, dtype, device),
            next_row=0,
        )
    resumed_at_row = state.next_row
    written = time.monotonic()
    for next_row in _add_rows(state, rows, n_landmarks, dtype, device, n_jobs):
        state.next_row = next_row
        if on_progress is not None:
            on_progress(next_row / n_rows)
        if checkpoint is not None and time.monotonic() - written >= checkpoint.seconds:
            checkpoint.save(state, n_rows, n_landmarks)
            written = time.monotonic()
    if checkpoint is not None:
        checkpoint.path.unlink(missing_ok=True)
    report = Bunch(
        n_rows=n_rows,
        n_landmarks=len(state.basis.landmarks),
        n_candidate_rows=n_candidates,
        captured_trace=state.sums.captured_trace,
        resumed_at_row=resumed_at_row,
        planned_bytes=planned,
    )
    return NystromPass(state.basis, state.sums, state.probes, shape, report)


def _add_rows(
    state: PassState,
    rows: StreamedRows,
    n_landmarks: int,
    dtype: torch.dtype,
    device: torch.device,
    n_jobs: int | None,
) -> Iterator[int]:
    """Add the rows from ``state.next_row`` on to the sums, and yield what row comes next."""
    n_rows, start = rows.stream.n_rows, state.next_row
    span = max(block_rows(n_landmarks), ROWS_PER_TASK * n_landmarks)
    if joblib.effective_n_jobs(n_jobs) == 1 or n_rows - start <= span:
        for block, X, targets, weights in rows.blocks(n_landmarks, dtype, device, start):
            state.sums.add(state.basis, X, targets, weights)
            yield block.stop
        return
    ends = [*range(start + span, n_rows, span), n_rows]
    tasks = (
        joblib.delayed(_sums_over)(state.basis, rows.between(first, last), n_landmarks, device)
        for first, last in zip([start, *ends], ends, strict=False)
    )
    parts = joblib.Parallel(n_jobs, return_as="generator")(tasks)
    for end, part in zip(ends, parts, strict=True):
        state.sums.merge(part)
        yield end


def _sums_over(
    basis: LandmarkBasis, rows: StreamedRows, n_landmarks: int, device: torch.device
) -> RowSums:
    """Return the sums over some rows; what a worker does."""
    n_targets = int(np.prod(rows.target_shape))
    sums = RowSums.zeros(len(basis.landmarks), n_targets, device)
    for _, X, targets, weights in rows.blocks(n_landmarks, basis.landmarks.dtype, device):
        sums.add(basis, X, targets, weights)
    return sums


def _choose_landmarks(
    kernel: KernelFunction,
    rows: StreamedRows,
    n_landmarks: int,
    method: str,
    n_candidates: int,
    random_state: np.random.RandomState,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return landmarks (M, d) among the distinct rows of ``n_candidates`` drawn at random."""
    numbers = rows.sample(n_candidates, random_state)
    X = rows.stream.take(numbers, dtype=dtype).to(device)
    X = X[merge_rows(X).first]
    if len(X) <= n_landmarks:
        return X
    if method == "uniform":
        return X[torch.as_tensor(_sample(len(X), n_landmarks, random_state), device=device)]
    generator = torch.Generator().manual_seed(random_state.randint(2**31))
    found = randomly_pivoted_cholesky(TiledOperator(kernel, X), n_landmarks, generator=generator)
    return X[found.pivots]


def _sample(n: int, size: int, random_state: np.random.RandomState) -> np.ndarray:
    """Return min(n, size) increasing numbers below n, drawn without replacement."""
    return np.sort(sample_without_replacement(n, min(n, size), random_state=random_state))


def solve_pass(done: NystromPass, ridge: float = 0.0) -> NystromStudent:
    """Return the student with ridge ``ridge`` from a completed pass: O(M³), without the rows.

    Returns
    -------
    NystromStudent
        Its report holds, beside that of the pass, ``ridge``, ``jitter``, ``rcond`` and two root
        mean squares over up to 1000 random training rows, shaped as one row's Δz:
        ``fit_gap`` of Δz − f, which at α = 0 is how far this student is from the exact one on
        training rows, since that one interpolates; and ``held_out_gap`` of Δz − f₋ᵢ, with f₋ᵢ
        trained on all rows but that one (None where this leaves it undetermined).
    """
    solution = RestrictedStudent(done.basis, done.sums, ridge)
    probes = done.probes
    logits, remainder = solution.fit_and_remainder(probes.X, probes.weights)
    residual = probes.targets - logits

    def root_mean_square(values: Tensor) -> np.ndarray:
        return to_numpy(values.square().mean(dim=0).sqrt().reshape(done.target_shape))

    is_determined = (remainder > 0).all()
    report = Bunch(
        **done.report,
        ridge=ridge,
        jitter=solution.jitter,
        rcond=solution.rcond,
        fit_gap=root_mean_square(residual),
        held_out_gap=root_mean_square(residual / remainder[:, None]) if is_determined else None,
    )
    coefficients = solution.coefficients.reshape(-1, *done.target_shape)
    return NystromStudent(coefficients, done.basis.landmarks, report, solution)


def leave_one_out_blocks(
    solution: RestrictedStudent, rows: StreamedRows
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, logits (b, ...)) of each row's prediction by the student of all other rows.

    A second pass over the rows, in closed form for every column at once; see
    `RestrictedStudent.leave_one_out` for its cost.
    """
    Z = solution.basis.landmarks
    for block, X, targets, weights in rows.blocks(len(Z), Z.dtype, Z.device):
        logits = solution.leave_one_out(X, targets, weights)
        yield block, logits.reshape(-1, *rows.target_shape)
