"""The interface of kernel functions: a block, a Gram matrix, a diagonal, and optional methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from sklearn_kd.kernels._tiles import product, stream


class KernelFunction(ABC):
    """A positive semi-definite kernel function on rows of tensors.

    Attributes
    ----------
    has_own_product : bool
        Whether `matmat` may cost less than evaluating the entries of the kernel matrix. False, the
        default, means that it evaluates all of them.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
    >>> X, V = torch.eye(3), torch.ones(3, 1)
    >>> product = InfiniteKernel().matmat(X, X, V)
    >>> torch.allclose(product, InfiniteKernel().gram(X) @ V)
    True
    """

    has_own_product: ClassVar[bool] = False

    @abstractmethod
    def block(self, X: Tensor, Y: Any) -> Tensor:
        """Return K(X, Y), shape (n, m)."""

    @abstractmethod
    def gram(self, X: Tensor, *, out: Tensor | None = None, symmetrize: bool = True) -> Tensor:
        """Return K(X, X), shape (n, n), in ``out`` if given."""

    @abstractmethod
    def diag(self, X: Tensor) -> Tensor:
        """Return K(x, x) for each row, shape (n,)."""

    def prepared(self, Y: Tensor) -> Any:
        """Return rows that `block` and `matmat` take for ``Y`` again and again; here, as they are.

        They can be counted and sliced, as a tensor can.
        """
        return Y

    def matmat(self, X: Tensor, Y: Any, V: Tensor) -> Tensor:
        """Return K(X, Y) V of shape (n, k) for V of shape (m, k), holding few kernel entries.

        At most 64 MiB of K(X, Y) exist at a time, 512 MiB on a GPU, whatever n and m.
        """
        return product(stream(self.block, X, Y), len(X), V)

    def noise(self, X: Tensor) -> float:
        """Return the variance ν that every row of ``X`` has for itself, as by a WhiteKernel.

        It is in neither `block`, `gram` nor `diag`. To a kernel machine it is a ridge.
        """
        return 0.0

    def outputs(self, X: Tensor) -> Tensor | None:
        """Return z₀(X) of the network behind the kernel, (n,) or (n, K); None if there is none."""
        return None
