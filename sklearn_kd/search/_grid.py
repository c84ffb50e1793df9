"""The candidates of a search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from sklearn_kd._kernel_machine import kernel_to_use
from sklearn_kd._logits import n_logits
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.kernels._protocol import KernelFunction
from sklearn_kd.teachers._several import normalised_weights


class Candidate(NamedTuple):
    """Where a candidate stands on each axis of the grid."""

    kernel: int
    ridge: int
    time: int
    recipe: int


class Cell(NamedTuple):
    """The candidates of all recipes with one kernel, ridge and stopping time: scored together."""

    kernel: int
    ridge: float
    time: float | None  # None: converged


@dataclass(frozen=True)
class Grid:
    """The candidates: kernels × ridges × stopping times × recipes, in this order.

    A recipe is a dict of ``soft_ratio``, ``temperature``, ``temperature_scaling`` and
    ``teacher_weights``.
    """

    kernels: list  # as the user gave them
    used_kernels: list  # as students keep them
    functions: list[KernelFunction]  # the same on tensors
    ridges: list[float]
    times: list[float | None]  # None: the converged student
    recipes: list[dict[str, Any]]
    names_kernel: bool  # whether the kernel is one of the parameters searched
    names_time: bool  # whether the stopping time is
    names_weights: bool  # whether the weights of the teachers are

    @classmethod
    def of(
        cls,
        *,
        soft_ratios: Any,
        temperatures: Any,
        ridges: Any,
        kernel: Any,
        temperature_scaling: str,
        stopping_times: Any = None,
        teacher_weights: Any = None,
        teacher: Any = None,
    ) -> Self:
        """Return the grid of a search's parameters.

        Raises
        ------
        ValueError
            If an axis is empty, repeats itself, or leaves its range, or a soft ratio of 0 is to
            converge.
        """
        times = _times(stopping_times)
        soft_ratios = _soft_ratios(soft_ratios, stopping_times, times)
        temperatures = _axis("temperatures", temperatures, "positive numbers", lambda t: t > 0)
        ridges = _axis("ridges", ridges, "numbers of at least 0", lambda ridge: ridge >= 0)
        is_list = isinstance(kernel, (list, tuple))
        kernels = list(kernel) if is_list else [kernel]
        if not kernels:
            raise ValueError("kernel=[] holds no kernel; give one, or None for NTK().")
        used = [kernel_to_use(one) for one in kernels]
        return cls(
            kernels=kernels,
            used_kernels=used,
            functions=[as_kernel_function(one) for one in used],
            ridges=ridges,
            times=times,
            recipes=[
                {
                    "soft_ratio": soft_ratio,
                    "temperature": temperature,
                    "temperature_scaling": temperature_scaling,
                    "teacher_weights": weights,
                }
                for soft_ratio, temperature, weights in itertools.product(
                    soft_ratios, temperatures, _weights(teacher_weights, teacher)
                )
            ],
            names_kernel=is_list,
            names_time=stopping_times is not None,
            names_weights=teacher_weights is not None,
        )

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates, in the order of ``cv_results_``."""
        axes = (self.kernels, self.ridges, self.times, self.recipes)
        places = itertools.product(*(range(len(axis)) for axis in axes))
        return list(itertools.starmap(Candidate, places))

    def cells_of(self, kernel: int) -> list[Cell]:
        """Return the cells of a kernel, each of all recipes, in the order of ``cv_results_``."""
        places = itertools.product(self.ridges, self.times)
        return [Cell(kernel, ridge, time) for ridge, time in places]

    @property
    def stopped_at(self) -> list[float]:
        """The stopping times in increasing order, without the converged student."""
        return sorted(time for time in self.times if time is not None)

    @property
    def params(self) -> list[dict[str, Any]]:
        """The searched parameters of every candidate."""
        return [self.params_of(candidate) for candidate in self.candidates]

    def params_of(self, candidate: Candidate) -> dict[str, Any]:
        """Return the searched parameters of a candidate."""
        recipe = self.recipes[candidate.recipe]
        return {
            "ridge": self.ridges[candidate.ridge],
            **({"kernel": self.kernels[candidate.kernel]} if self.names_kernel else {}),
            **({"stopping_time": self.times[candidate.time]} if self.names_time else {}),
            "soft_ratio": recipe["soft_ratio"],
            "temperature": recipe["temperature"],
            **({"teacher_weights": recipe["teacher_weights"]} if self.names_weights else {}),
        }

    def n_columns(self, n_classes: int) -> int:
        """Return the number of right-hand sides of all recipes, one for each logit."""
        return len(self.recipes) * n_logits(n_classes)

    def preference(self) -> list[tuple]:
        """Return what decides ties: the larger ρ, smaller T, larger ridge, earlier time, the first.

        The converged student is the latest.
        """
        ends = [math.inf if time is None else time for time in self.times]
        return [
            (-p["soft_ratio"], p["temperature"], -p["ridge"], ends[candidate.time], index)
            for index, (p, candidate) in enumerate(zip(self.params, self.candidates, strict=True))
        ]


def _times(stopping_times: Any) -> list[float | None]:
    """Return the stopping times in the order given; None is the converged student."""
    if stopping_times is None:
        return [None]
    values = np.asarray(stopping_times, dtype=object)
    try:
        times = [None if value is None else float(value) for value in values.reshape(-1)]
    except (TypeError, ValueError):
        times = []
    are_times = all(time is None or 0 < time < math.inf for time in times)
    if values.ndim != 1 or not times or not are_times or len(set(times)) < len(times):
        raise ValueError(
            f"stopping_times={stopping_times!r} must be a sequence of distinct positive finite "
            "numbers; None among them is the converged student."
        )
    return times


def _soft_ratios(given: Any, stopping_times: Any, times: list[float | None]) -> list[float]:
    """Return the soft ratios; 0 is among them only where every student stops."""
    name = "soft_ratios"
    if stopping_times is None:
        return _axis(name, given, "numbers in (0, 1]", lambda rho: (rho > 0) & (rho <= 1))
    ratios = _axis(name, given, "numbers in [0, 1]", lambda rho: (rho >= 0) & (rho <= 1))
    if 0 in ratios and None in times:
        raise ValueError(
            f"soft_ratios={given!r} holds 0, hard labels alone, which are learnt without end, but "
            f"stopping_times={stopping_times!r} holds None, the converged student; leave out "
            "either."
        )
    return ratios


def _weights(teacher_weights: Any, teacher: Any) -> list[tuple[float, ...] | None]:
    """Return the candidates for the weights of the teachers."""
    if teacher_weights is None:
        return [normalised_weights(None, teacher)]
    if not len(teacher_weights) or np.ndim(teacher_weights[0]) != 1:
        raise ValueError(
            f"teacher_weights={teacher_weights!r} must be a list of weight vectors, one number "
            "for each teacher in each; or None for equal weights."
        )
    candidates = [normalised_weights(weights, teacher) for weights in teacher_weights]
    if len(set(candidates)) < len(candidates):
        raise ValueError(
            f"teacher_weights={teacher_weights!r} holds the same weights twice, once they are "
            "made to sum to one; give distinct ones."
        )
    return candidates


def _axis(
    name: str, given: Any, what: str, in_range: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    values = np.asarray(given, dtype=float)
    valid = (
        values.ndim == 1
        and len(values) > 0
        and np.isfinite(values).all()
        and in_range(values).all()
        and len(np.unique(values)) == len(values)
    )
    if not valid:
        raise ValueError(f"{name}={given!r} must be a sequence of distinct {what}.")
    return values.tolist()
