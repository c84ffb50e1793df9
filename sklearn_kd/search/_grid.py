"""The candidates of a search."""

from __future__ import annotations

import itertools
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
    recipe: int


@dataclass(frozen=True)
class Grid:
    """The candidates: kernels × ridges × recipes, in this order.

    A recipe is a dict of ``soft_ratio``, ``temperature``, ``temperature_scaling`` and
    ``teacher_weights``.
    """

    kernels: list  # as the user gave them
    used_kernels: list  # as students keep them
    functions: list[KernelFunction]  # the same on tensors
    ridges: list[float]
    recipes: list[dict[str, Any]]
    names_kernel: bool  # whether the kernel is one of the parameters searched
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
        teacher_weights: Any = None,
        teacher: Any = None,
    ) -> Self:
        """Return the grid of a search's parameters.

        Raises
        ------
        ValueError
            If an axis is empty, repeats itself, or leaves its range.
        """
        soft_ratios = _axis(
            "soft_ratios", soft_ratios, "numbers in (0, 1]", lambda rho: (rho > 0) & (rho <= 1)
        )
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
            names_weights=teacher_weights is not None,
        )

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates, in the order of ``cv_results_``."""
        axes = (range(len(axis)) for axis in (self.kernels, self.ridges, self.recipes))
        return list(itertools.starmap(Candidate, itertools.product(*axes)))

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
            "soft_ratio": recipe["soft_ratio"],
            "temperature": recipe["temperature"],
            **({"teacher_weights": recipe["teacher_weights"]} if self.names_weights else {}),
        }

    def n_columns(self, n_classes: int) -> int:
        """Return the number of right-hand sides of all recipes, one for each logit."""
        return len(self.recipes) * n_logits(n_classes)

    def preference(self) -> list[tuple]:
        """Return what decides ties: the larger ρ, the smaller T, the larger ridge, the first."""
        return [
            (-p["soft_ratio"], p["temperature"], -p["ridge"], index)
            for index, p in enumerate(self.params)
        ]


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
