"""One pass over a stream of rows: the student restricted to a few landmarks, for a whole grid.

This module chooses the landmarks, runs the pass, which can be interrupted and resumed, and reports
on the answer. The algebra is in `linalg._landmarks`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from sklearn.utils import Bunch, check_random_state
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
from sklearn_kd.solvers._checkpoint import Checkpoint, Fingerprint, PassState, sketch
from sklearn_kd.solvers._rows_and_targets import Probes, StreamedRows, sample_numbers

# Candidates per landmark. The landmarks are chosen among these rows, drawn at random.
CANDIDATES_PER_LANDMARK = 10

# Rows per landmark in the task of a worker: its M² sums then cost little to send back.
ROWS_PER_TASK = 16

# Rows on which the gaps are measured.
N_PROBES = 1000

# First rows, on which a resumed pass recognises its kernel.
_N_KERNEL_ROWS = 8

# Entries of the targets that are sketched at a time for a checkpoint.
_SKETCH_ENTRIES = 2**20

NYSTROM_REMEDY = "Use a smaller n_landmarks, fewer candidates at once, or raise memory_limit."


def candidate_rows(n_rows: int, n_landmarks: int) -> int:
    """Return the number of rows among which that many landmarks are chosen."""
    return min(n_rows, CANDIDATES_PER_LANDMARK * n_landmarks)


@dataclass
class NystromPass:
    """The sums of a completed pass: students of any ridge follow from it without the rows."""

    basis: LandmarkBasis
    sums: RowSums
    probes: Probes
    target_shape: tuple[int, ...]
    report: Bunch


@dataclass(frozen=True)
class LandmarkChoice:
    """Which rows become landmarks.

    Parameters
    ----------
    n_landmarks : int
        Number of landmarks M. If the candidates hold fewer distinct rows, all of them are used.
    method : {"rpcholesky", "uniform"}, default="rpcholesky"
        How they are chosen among the distinct rows of at most 10 M candidates, which are drawn at
        random: by randomly pivoted Cholesky or uniformly.
    random_state : int, RandomState or None, default=None
        Draws the candidates, the landmarks and the probes.
    any_draw : bool, default=False
        Whether the user asked for no particular draw. Then the draws of an interrupted pass are
        used, whatever ``random_state`` is.
    """

    n_landmarks: int
    method: str = "rpcholesky"
    random_state: Any = None
    any_draw: bool = False

    @property
    def seed(self) -> str:
        """The random state in words; None and numpy's global generator stand for any draw."""
        state = self.random_state
        if self.any_draw or state is None or state is np.random:
            return "None"
        if not isinstance(state, np.random.RandomState):
            return str(int(state))
        position = dict(state.get_state(legacy=False))
        numbers = position["state"].pop("key")
        return hashlib.sha256(f"{position}".encode() + numbers.tobytes()).hexdigest()


@dataclass(frozen=True)
class PassOptions:
    """How a pass is run; this does not change its result.

    Parameters
    ----------
    memory_limit : "auto" or number of bytes, default="auto"
        Budget of this process, without the memory of the source of the rows.
    beside : int, default=0
        Bytes of the budget that the caller takes.
    n_jobs : int, default=None
        Number of `joblib` workers that sum over spans of rows; None is 1 outside of a
        `joblib.parallel_config`.
    checkpoint : Checkpoint, default=None
        Where the sums are written at intervals and at the end. A later call with the same kernel,
        rows, targets and landmarks resumes from there. The caller removes the file when it no
        longer needs the pass.
    on_progress : callable, default=None
        Called with the share of the rows that is done.
    """

    memory_limit: float | str = "auto"
    beside: int = 0
    n_jobs: int | None = None
    checkpoint: Checkpoint | None = None
    on_progress: Callable[[float], None] | None = None


_DEFAULTS = PassOptions()


class NystromStudent(NamedTuple):
    """The restricted student, f(x) = Θ(x, landmarks) coefficients, and a report."""

    coefficients: Tensor  # (M, ...), as the targets beyond their first axis
    landmarks: Tensor  # (M, d)
    report: Bunch
    solution: RestrictedStudent


def nystrom_student(
    kernel: KernelFunction,
    rows: StreamedRows,
    choice: LandmarkChoice,
    *,
    ridge: float = 0.0,
    **options: Any,
) -> NystromStudent:
    """Fit the student restricted to landmarks, in one pass over the rows.

    It minimises Σᵢ wᵢ (f(xᵢ) − Δzᵢ)² + λ bᵀ Θ_ZZ b over f = Θ(·, Z) b, for all columns of Δz at
    once. The sum treats copies of a row as one row with their total weight and mean Δz. Eq. 3 is
    not linear in the labels. So if copies have different labels, and the student is to be that of
    merged rows, ``rows.targets`` must give each copy the Δz of the merged row.

    Parameters are those of `nystrom_pass`, and the ridge λ ≥ 0.

    Returns
    -------
    NystromStudent
        See `solve_pass` for its report.
    """
    return solve_pass(nystrom_pass(kernel, rows, choice, **options), ridge)


def nystrom_pass(
    kernel: KernelFunction,
    rows: StreamedRows,
    choice: LandmarkChoice,
    *,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    options: PassOptions = _DEFAULTS,
) -> NystromPass:
    """Choose the landmarks and sum over all rows, a block at a time.

    Parameters
    ----------
    kernel : KernelFunction
        The tangent kernel.
    rows : StreamedRows
        The training rows.
    choice : LandmarkChoice
        Which of them become landmarks.
    dtype : torch.dtype, default=torch.float64
        Of the kernel's entries; everything else is float64.
    device : str or torch.device, default="cpu"
        Where to compute.
    options : PassOptions
        How the pass is run.

    Returns
    -------
    NystromPass
        With a report of ``n_rows``, ``n_landmarks``, ``n_candidate_rows``, ``captured_trace`` (the
        share of tr Θ that the landmarks explain), ``resumed_at_row`` and ``planned_bytes``.

    Raises
    ------
    MemoryBudgetError
        Before anything is allocated, if the plan exceeds ``options.memory_limit``.
    ValueError
        If rows hold NaN or infinity, or the checkpoint cannot be written, is damaged or is that
        of another pass.
    """
    device = torch.device(device)
    n_rows = rows.stream.n_rows
    choice = replace(choice, n_landmarks=min(choice.n_landmarks, n_rows))
    planned = _require_memory(rows, choice.n_landmarks, device, options)
    if options.checkpoint is None:
        state = _starting_point(kernel, rows, choice, dtype, device)
        resumed_at_row = 0
        for _ in _add_rows(state, rows, options):
            pass
    else:
        _require_writable(options.checkpoint, rows, choice.n_landmarks)
        fingerprint = _fingerprint(kernel, rows, choice, dtype, device)
        found = options.checkpoint.load(fingerprint, kernel, rows.take, device)
        state = found or _starting_point(kernel, rows, choice, dtype, device)
        resumed_at_row = state.next_row
        written = time.monotonic()
        for next_row in _add_rows(state, rows, options):
            is_due = time.monotonic() - written >= options.checkpoint.seconds
            if is_due or next_row == n_rows:
                options.checkpoint.save(fingerprint, state)
                written = time.monotonic()
    report = Bunch(
        n_rows=n_rows,
        n_landmarks=len(state.basis.landmarks),
        n_candidate_rows=candidate_rows(n_rows, choice.n_landmarks),
        captured_trace=state.sums.captured_trace,
        resumed_at_row=resumed_at_row,
        planned_bytes=planned,
    )
    return NystromPass(state.basis, state.sums, state.probes, rows.target_shape, report)


def _require_memory(
    rows: StreamedRows, n_landmarks: int, device: torch.device, options: PassOptions
) -> int:
    """Return the bytes that a pass takes, after checking that they fit."""
    n_rows, n_features = rows.stream.n_rows, rows.stream.n_features
    n_targets, n_candidates = rows.n_targets, candidate_rows(n_rows, n_landmarks)
    planned = nystrom_bytes(n_rows, n_features, n_landmarks, n_targets, n_candidates, device)
    n_workers = joblib.effective_n_jobs(options.n_jobs)
    if n_workers > 1:  # two finished spans for each worker may wait to be added
        planned += 2 * n_workers * 8 * n_landmarks * (n_landmarks + n_targets)
    planned += options.beside
    require(
        planned,
        options.memory_limit,
        device,
        what=f"The student restricted to n_landmarks={n_landmarks} landmarks, with {n_targets} "
        "right-hand sides,",
        remedy=NYSTROM_REMEDY,
    )
    return planned


def _require_writable(checkpoint: Checkpoint, rows: StreamedRows, n_landmarks: int) -> None:
    numbers_per_landmark = n_landmarks + rows.n_targets + rows.stream.n_features
    checkpoint.require_writable(8 * (n_landmarks * numbers_per_landmark + N_PROBES))


def _fingerprint(
    kernel: KernelFunction,
    rows: StreamedRows,
    choice: LandmarkChoice,
    dtype: torch.dtype,
    device: torch.device,
) -> Fingerprint:
    """Return everything that a pass depends on; reads every row that has not been read before."""
    cpu, n_rows, weights = torch.device("cpu"), rows.stream.n_rows, rows.weights
    step = max(1, _SKETCH_ENTRIES // rows.n_targets)
    blocks = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    few = rows.stream.take(np.arange(min(_N_KERNEL_ROWS, n_rows))).to(device)
    sketches = {
        "kernel": sketch([(slice(0, len(few)), kernel.gram(few))]),
        "targets": sketch((block, rows.fitted_to(block, cpu)[0]) for block in blocks),
        "sample weights": np.zeros((2, 1))
        if weights is None
        else sketch((block, weights[block]) for block in blocks),
    }
    facts = {
        "number of rows or features": str(rows.stream.shape),
        "number of targets": str(rows.target_shape),
        "n_landmarks": str(choice.n_landmarks),
        "landmarks": choice.method,
        "random_state": choice.seed,
        "dtype": str(dtype),
        "rows": rows.stream.digest(dtype).hex(),
    }
    return Fingerprint(facts, sketches, dtype)


def _starting_point(
    kernel: KernelFunction,
    rows: StreamedRows,
    choice: LandmarkChoice,
    dtype: torch.dtype,
    device: torch.device,
) -> PassState:
    """Return a pass that has chosen its landmarks and seen no row."""
    random_state = check_random_state(choice.random_state)
    numbers = rows.sample(N_PROBES, random_state)
    Z = _choose_landmarks(kernel, rows, choice, random_state, dtype, device)
    return PassState(
        basis=LandmarkBasis(kernel, Z),
        sums=RowSums.zeros(len(Z), rows.n_targets, device),
        probes=rows.take(numbers, dtype, device),
        next_row=0,
    )


def _add_rows(state: PassState, rows: StreamedRows, options: PassOptions) -> Iterator[int]:
    """Add the rows from ``state.next_row`` on to the sums, and yield the number of the next row."""
    n_rows = rows.stream.n_rows
    for next_row in _added(state.basis, state.sums, rows, state.next_row, options.n_jobs):
        state.next_row = next_row
        if options.on_progress is not None:
            options.on_progress(next_row / n_rows)
        yield next_row


def _added(
    basis: LandmarkBasis, sums: RowSums, rows: StreamedRows, start: int, n_jobs: int | None
) -> Iterator[int]:
    """Add the rows from ``start`` on, block by block or by workers, and yield where they end."""
    n_rows, Z = rows.stream.n_rows, basis.landmarks
    span = max(block_rows(len(Z)), ROWS_PER_TASK * len(Z))
    if joblib.effective_n_jobs(n_jobs) == 1 or n_rows - start <= span:
        for block, X, targets, weights in rows.blocks(block_rows(len(Z)), Z.dtype, Z.device, start):
            sums.add(basis, X, targets, weights)
            yield block.stop
        return
    ends = [*range(start + span, n_rows, span), n_rows]
    tasks = (
        joblib.delayed(_sums_over)(basis, rows.between(first, last))
        for first, last in zip([start, *ends], ends, strict=False)
    )
    parts = joblib.Parallel(n_jobs, return_as="generator")(tasks)
    for end, part in zip(ends, parts, strict=True):
        sums.merge(part)
        yield end


def _sums_over(basis: LandmarkBasis, rows: StreamedRows) -> RowSums:
    """Return the sums over some rows; the task of a worker."""
    Z = basis.landmarks
    sums = RowSums.zeros(len(Z), rows.n_targets, Z.device)
    for _, X, targets, weights in rows.blocks(block_rows(len(Z)), Z.dtype, Z.device):
        sums.add(basis, X, targets, weights)
    return sums


def _choose_landmarks(
    kernel: KernelFunction,
    rows: StreamedRows,
    choice: LandmarkChoice,
    random_state: np.random.RandomState,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return landmarks (M, d) among the distinct rows of candidates drawn at random."""
    M = choice.n_landmarks
    numbers = rows.sample(candidate_rows(rows.stream.n_rows, M), random_state)
    X = rows.stream.take(numbers, dtype=dtype).to(device)
    X = X[merge_rows(X).first]
    if len(X) <= M:
        return X
    if choice.method == "uniform":
        return X[torch.as_tensor(sample_numbers(len(X), M, random_state), device=device)]
    generator = torch.Generator().manual_seed(random_state.randint(2**31))
    found = randomly_pivoted_cholesky(TiledOperator(kernel, X), M, generator=generator)
    return X[found.pivots]


def solve_pass(done: NystromPass, ridge: float = 0.0) -> NystromStudent:
    """Return the student with ridge ``ridge`` from a completed pass: O(M³), without the rows.

    Returns
    -------
    NystromStudent
        Its report holds, beside that of the pass, ``ridge``, ``jitter``, ``rcond`` and two root
        mean squares over up to 1000 random training rows, shaped as one row's Δz:
        ``fit_gap`` of Δz − f, which at λ = 0 is how far this student is from the exact one on
        training rows, since that one interpolates; and ``held_out_gap`` of Δz − f₋ᵢ, with f₋ᵢ
        trained on all rows but that one (None where this leaves it undetermined).
    """
    noise = done.basis.kernel.noise(done.basis.landmarks)
    solution = RestrictedStudent(done.basis, done.sums, ridge + noise)
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
    for block, X, targets, weights in rows.blocks(block_rows(len(Z)), Z.dtype, Z.device):
        logits = solution.leave_one_out(X, targets, weights)
        yield block, logits.reshape(-1, *rows.target_shape)
