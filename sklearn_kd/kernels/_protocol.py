"""What the library asks of a kernel: a block, a Gram matrix, a diagonal."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KernelFunction(Protocol):
    """A positive semi-definite kernel function on rows of tensors."""

    def block(self, X: Tensor, Y: Tensor) -> Tensor:
        """Return K(X, Y), shape (n, m)."""

    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return K(X, X), shape (n, n), in ``out`` if given."""

    def diag(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row, shape (n,)."""
