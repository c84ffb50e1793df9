"""The parts of `LinearizedKDStudent.prefix_path` that need no student: checks and packaging."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils import Bunch
from torch import Tensor

from sklearn_kd._array import like
from sklearn_kd._sklearn import Interval, StrOptions, validate_parameter_constraints
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg._prior import GaussianPrior, centred
from sklearn_kd.metrics._inefficiency import data_inefficiency, data_inefficiency_std
from sklearn_kd.metrics._path import PrefixRisks, PrefixWeightChanges

CONSTRAINTS = {
    "n_permutations": [Interval(Integral, 1, None, closed="left"), None],
    "init": [StrOptions({"zero", "random"})],
    "window": [Interval(Real, 1, None, closed="neither")],
    "random_state": ["random_state"],
}


class Run(NamedTuple):
    """What one order of the rows, and one initial network, gave."""

    changes: PrefixWeightChanges
    risks: PrefixRisks | None


def check_options(**options: Any) -> None:
    """Raise `InvalidParameterError` unless the options of ``prefix_path`` are valid."""
    validate_parameter_constraints(CONSTRAINTS, options, caller_name="prefix_path")


def checked_sizes(sizes: Any, n_rows: int) -> list[int]:
    """Return the training-set sizes, 1…n for None."""
    if sizes is None:
        return list(range(1, n_rows + 1))
    values = np.asarray(sizes)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "iu":
        raise ValueError(f"sizes={sizes!r} must be a sequence of integers, or None for all sizes.")
    if (np.diff(values) <= 0).any() or values[0] < 1 or values[-1] > n_rows:
        raise ValueError(
            f"sizes={values.tolist()} must increase and lie in 1…{n_rows}, the number of distinct "
            "training rows."
        )
    return values.tolist()


def checked_recipes(
    param_grid: Any, default: dict[str, Any], constraints: dict[str, list]
) -> list[dict[str, Any]]:
    """Return the candidates of ``param_grid``, the student's own recipe for None."""
    candidates = [{}] if param_grid is None else list(ParameterGrid(param_grid))
    for candidate in candidates:
        unknown = sorted(set(candidate) - set(default))
        if unknown:
            raise ValueError(
                f"param_grid holds {unknown[0]!r}; one factor serves only {', '.join(default)}. "
                "Set the others by set_params and fit again."
            )
        validate_parameter_constraints(
            {name: constraints[name] for name in candidate}, candidate, caller_name="prefix_path"
        )
    return [default | candidate for candidate in candidates]


def row_orders(
    n_rows: int, n_permutations: int | None, random_state: np.random.RandomState
) -> Iterator[Tensor | None]:
    """Yield the orders of the rows; None is the order they have."""
    if n_permutations is None:
        yield None
        return
    for _ in range(n_permutations):
        yield torch.as_tensor(random_state.permutation(n_rows))


class InitialNetworks:
    """Draws of z₀ on the training rows and on new rows jointly: 0, or of the NNGP prior."""

    def __init__(
        self, init: str, kernel: Any, X: Tensor, X_new: Tensor | None, memory_limit: float | str
    ) -> None:
        self._prior = None
        self._n_rows = len(X)
        if init == "zero":
            return
        if not isinstance(kernel, NTK) or kernel.kind != "ntk":
            raise ValueError(
                "init='random' draws the initial network from the NNGP prior, which is known for "
                f"kernel=NTK(kind='ntk'), not for kernel={kernel!r}; use init='zero'."
            )
        rows = X if X_new is None else torch.cat([X, X_new])
        prior_kernel = clone(kernel).set_params(kind="nngp").to_torch()
        self._prior = GaussianPrior(prior_kernel, rows, memory_limit=memory_limit)

    def draw(
        self, shape: tuple[int, ...], random_state: np.random.RandomState, reference: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return z₀ on the training rows, (n, *shape), and on the new rows (None for zero)."""
        if self._prior is None:
            return reference.new_zeros((self._n_rows, *shape)), None
        noise = random_state.standard_normal((self._prior.n_distinct, *shape))
        z_0 = centred(self._prior.transform(torch.as_tensor(noise).to(reference)))
        return z_0[: self._n_rows], z_0[self._n_rows :]


def collected(
    runs: list[Run], sizes: list[int], window: float, params: list[dict] | None, reference: Any
) -> Bunch:
    """Return the curves of all runs in the array library of ``reference``.

    Axes: candidates where ``params`` is given, then permutations, then sizes.
    """
    at = torch.as_tensor(sizes)

    def stacked(tensors: list[Tensor]) -> Tensor:
        # (P, S, C, ...) -> (C, P, S, ...)
        return torch.stack(tensors).movedim(2, 0)

    def curve(function: Any, ratio: float | None) -> Tensor:
        return torch.stack([function(norms, at, window=ratio) for norms in all_norms])

    all_norms = stacked([run.changes.norms for run in runs])
    rows = at.to(all_norms.device) - 1
    curves = {
        "weight_change_norm": stacked([run.changes.weight_change_norms[rows] for run in runs]),
        "one_step_error": stacked([run.changes.one_step_errors[rows] for run in runs]),
        "data_inefficiency": curve(data_inefficiency, None),
        "data_inefficiency_std": curve(data_inefficiency_std, None),
        "smoothed_data_inefficiency": curve(data_inefficiency, window),
        "smoothed_data_inefficiency_std": curve(data_inefficiency_std, window),
    }
    risks = [run.risks for run in runs if run.risks is not None]
    if risks:
        curves["transfer_risk"] = stacked([risk.transfer_risk for risk in risks])
        errors = [risk.error for risk in risks if risk.error is not None]
        if errors:
            curves["error"] = stacked(errors)
    path = Bunch(sizes=like(at, reference))
    if params is None:
        return Bunch(**path, **{name: like(v[0], reference) for name, v in curves.items()})
    return Bunch(**path, params=params, **{k: like(v, reference) for k, v in curves.items()})
