"""The student that stops after a finite time of training: gradient flow of Eq. 2.

Symbols (paper -> code -> shape), with n distinct rows, K classes (no K axis for two), S times:

====  ====================  ==================================================
ρ, T  ``recipe``            soft ratio, by row where copies differ; temperature
a     ``stages``            (S, n) or (S, n, K), coefficients at every time
ω     ``weights``           (n,), total weight of a row's copies, with sum 1
μ     ``decay``             ridge λ over the total weight of all rows
====  ====================  ==================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_kd._kernel_machine import gram_with_noise, weight_change_norm
from sklearn_kd._logits import class_indices
from sklearn_kd._memory import MEMORY_REMEDY, require
from sklearn_kd._progress import PERCENT, FitTask
from sklearn_kd.distillation._effective_logits_of_rows import MergedLabels
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.linalg._forecast import HALF, Speed, Work, n_sampled, product_work, warn_if_long
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.rows._training_rows import DistinctRows
from sklearn_kd.solvers._system import Size, Solution
from sklearn_kd.training._function_space import CrossEntropy, Term
from sklearn_kd.training._gradient_flow import KRYLOV_COPIES, gradient_flows, usual_products

N_STEPS = 1 + PERCENT  # of progress: the kernel matrix, and the flow


class Stopped(NamedTuple):
    """What a stopped student learns."""

    labels: MergedLabels
    recipe: dict[str, Any]


def require_memory(size: Size, memory_limit: float | str) -> None:
    """Raise `MemoryBudgetError` where the kernel matrix and the flow beside it do not fit."""
    planned = frame_bytes(*size) + flow_bytes(size)
    require(
        planned,
        memory_limit,
        size.device,
        what=f"LinearizedKDStudent.fit on n={size.n_rows} distinct rows with a stopping_time",
        remedy=MEMORY_REMEDY,
    )


def warn_if_long_flow(
    size: Size, times: list[float], kernel: KernelFunction, X: Tensor, *, what: str
) -> None:
    """Warn with `LongFitWarning` if the flow up to the last time will take minutes."""
    n = size.n_rows

    def work(n_rows: int) -> list[Work]:
        products = usual_products(times[-1]) * product_work(n_rows, size.n_targets)
        return [Work(size.dtype, n_rows**2 / 2, products)]

    warn_if_long(
        f"{what} to stopping_time={times[-1]:g}",
        work(n),
        lambda: {HALF: work(n // 2)},
        lambda: Speed([kernel], X[: n_sampled(n)]),
    )


def flow_bytes(size: Size) -> int:
    """Return the peak bytes of the flow of ``n_targets`` columns, beside the kernel matrix."""
    copies = KRYLOV_COPIES * (1 if size.n_targets == 1 else 2)
    return copies * size.n_rows * size.n_targets * size.dtype.itemsize


def losses_of_eq_2(problems: Sequence[Stopped], beside: Tensor) -> CrossEntropy:
    """Return ρ s H(σ(z_t/T), σ(f/T)) + (1 − ρ) H(y, σ(f)), s = 1 or T², of each problem (Eq. 2)."""
    soft, rest, hard, soft_weights, hard_weights, temperatures = [], [], [], [], [], []
    for labels, recipe in problems:
        temperature = recipe["temperature"]
        scale = temperature**2 if recipe["temperature_scaling"] == "squared" else 1.0
        p, others = _soft_labels(labels.teacher_logits.double() / temperature)
        ratios = torch.as_tensor(labels.soft_ratio, dtype=torch.float64, device=p.device)
        ratios = ratios.expand(1, p.shape[1])
        soft.append(p)
        rest.append(others)
        hard.append(columns_of(labels.hard_labels.double()))
        soft_weights.append(scale * ratios)
        hard_weights.append(1 - ratios)
        temperatures.append(torch.full((1, 1), temperature, dtype=torch.float64, device=p.device))

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).to(beside)

    y = stacked(hard)
    one = y.new_ones(len(y), 1, 1)
    terms = [
        Term(stacked(soft), stacked(rest), stacked(soft_weights), stacked(temperatures)),
        Term(y, 1 - y, stacked(hard_weights), one),
    ]
    return CrossEntropy([term for term in terms if term.weight.any()])


def columns_of(values: Tensor) -> Tensor:
    """Return logits or labels (n,) or (n, K), a row for each column, (1, n) or (K, n)."""
    return values[None] if values.ndim == 1 else values.mT


def _soft_labels(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return σ(z) and 1 − σ(z), (1, n) or (K, n), each to its own digits."""
    if z.ndim == 1:
        return z.sigmoid()[None], (-z).sigmoid()[None]
    p = z.softmax(dim=1)
    rest = 1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    return p.mT, (p @ rest).mT


def train(posed: Any, progress: FitTask, kernel_matrix: Tensor | None = None) -> Solution:
    """Return the student of a `PosedStudent` at its stopping times, trained from z₀.

    ``kernel_matrix`` is Θ + ν W⁻¹, where it is at hand.

    Training descends on the mean over the rows of Eq. 2, plus λ/(2 Σ w) ‖Δ_w‖²: the ridge is weight
    decay towards the initial weights.
    """
    distinct, times = posed.rows.distinct, posed.stopping_times
    weights, z_0 = distinct.weights, posed.initial_logits
    total = weights.sum()
    with progress.step("kernel"):
        row_noise = posed.function.noise(distinct.X) / weights
        if kernel_matrix is None:
            kernel_matrix = gram_with_noise(posed.function, distinct.X, row_noise)
    loss = losses_of_eq_2([Stopped(posed.labels, posed.recipe)], beside=weights)
    with progress.parts("gradient-flow", PERCENT) as on_progress, full_precision():
        stages, info = gradient_flows(
            kernel_matrix,
            loss,
            (weights / total)[None],
            stopping_times=times,
            initial_logits=columns_of(z_0) if z_0.any() else None,
            decay=np.array([posed.ridge / total.item()]),
            report=on_progress,
        )
        change = stages[:, 0].flatten(0, 1) @ kernel_matrix
        logits = columns_of(z_0) + change.view_as(stages[:, 0])
    losses = [(loss.value(f[None])[0] @ weights / total).item() for f in logits]
    stages = stages[:, 0, 0] if len(stages[0, 0]) == 1 else stages[:, 0].mT.contiguous()
    return Solution(
        stages[-1],
        distinct.X,
        weight_change_norm(kernel_matrix, stages[-1], row_noise),
        jitter=0.0,
        rcond=float("nan"),
        stages=stages,
        report={
            "n_kernel_products": int(info.n_products[0]),
            "training_loss": losses,
            "training_accuracy": [training_accuracy(f, distinct) for f in logits],
        },
    )


def staged_decision_function(self: Any, X: Any) -> Iterator[Any]:
    """Yield the logits at every stopping time of the one training run.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows to predict.

    Yields
    ------
    ndarray of shape (n_samples,) or (n_samples, n_classes)
        What ``decision_function`` would return at that stopping time; once, for a student that
        converged.
    """
    X = self._check_new_rows(X, "staged_decision_function")
    if self.staged_dual_coef_ is None:
        yield self.decision_function(X)
        return
    yield from self._staged_logits(X)


def training_accuracy(logits: Tensor, distinct: DistinctRows) -> float:
    """Return the share of labelled rows, by weight, whose class the logits (C, n) give."""
    f = logits[0] if len(logits) == 1 else logits.mT
    predicted = class_indices(f)[distinct.merged.group]
    labels = distinct.labels
    is_right, weights = predicted == labels.indices, distinct.kept_weights
    return (weights[is_right].sum() / weights[labels.is_labelled].sum()).item()
