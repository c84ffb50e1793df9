"""The candidates of a search."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from sklearn_kd._logits import n_logits


class Grid(NamedTuple):
    """The candidates: kernels × ridges × recipes, in this order."""

    kernels: list
    ridges: list[float]
    recipes: list[dict[str, Any]]
    names_kernel: bool  # whether the kernel is one of the parameters searched

    @property
    def params(self) -> list[dict[str, Any]]:
        """The searched parameters of every candidate."""
        return [
            {
                "ridge": ridge,
                **({"kernel": kernel} if self.names_kernel else {}),
                "soft_ratio": recipe["soft_ratio"],
                "temperature": recipe["temperature"],
            }
            for kernel, ridge, recipe in itertools.product(self.kernels, self.ridges, self.recipes)
        ]

    def n_columns(self, n_classes: int) -> int:
        """Return the number of right-hand sides of all recipes, one for each logit."""
        return len(self.recipes) * n_logits(n_classes)

    def preference(self, params: list[dict[str, Any]]) -> list[tuple]:
        """Return what decides ties: the larger ρ, the smaller T, the larger ridge, the first."""
        return [
            (-p["soft_ratio"], p["temperature"], -p["ridge"], index)
            for index, p in enumerate(params)
        ]
