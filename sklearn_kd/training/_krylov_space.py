r"""phi functions of a curvature times a kernel matrix, by short Lanczos recurrences.

======  ==============================================  =======================
symbol  meaning                                         name, shape
======  ==============================================  =======================
K       kernel matrix over its unit                     ``product``, as a map
M       root of the loss's curvature, W = M Mᵀ          ``root``
J       Jacobian of the flow, -W K                      never formed
v       the vector acted on                             ``vector`` (n,), (n, C)
V       orthonormal basis, one row a dimension          ``basis`` (m, n C)
T       V (Mᵀ K M) Vᵀ, tridiagonal                      ``diagonal``,
                                                        ``off_diagonal``
======  ==============================================  =======================
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.training._function_space import CurvatureRoot, KernelProduct

__all__ = ["MAX_KRYLOV_DIMENSION", "KrylovSpace", "phi"]

MAX_KRYLOV_DIMENSION = 100


def phi(order: int, x: np.ndarray) -> np.ndarray:
    """Return phi_order(-x) for x >= 0."""
    # phi_0(z) = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z;  phi_k(z) = sum_i z^i / (i + k)!
    z = -np.asarray(x, dtype=np.float64)
    near = np.where(z > -1, z, 0.0)  # the recursion cancels near 0, the series is short there
    series = sum(near**i * (1 / math.factorial(i + order)) for i in range(18))
    far = np.where(z > -1, -1.0, z)
    recursion = np.exp(far)
    for k in range(order):
        recursion = (recursion - 1 / math.factorial(k)) / far
    return np.where(z > -1, series, recursion)


class KrylovSpace:
    r"""phi functions of the Jacobian J = -W K acting on one vector v, by Lanczos.

    A state is a stacked pair (a, K a), so logits never cost a product of their own.
    """

    # J is not symmetric, B = Mᵀ K M is:
    #     phi_k(-h W K) v = v / k! - h M phi_{k+1}(-h B) Mᵀ K v,
    # since phi_k(z) = 1/k! + z phi_{k+1}(z).
    # Lanczos: B V = V T + ..., first column of V = Mᵀ K v / β, so
    #     phi_{k+1}(-h B) Mᵀ K v = β V phi_{k+1}(-h T) e_1,
    # and the stored columns of K M V give K times it.
    def __init__(self, product: KernelProduct, root: CurvatureRoot, vector: Tensor) -> None:
        self.product, self.root = product, root
        self.state = torch.stack([vector, product(vector)])
        start = root.apply_transpose(self.state[1])
        self.norm = start.norm().item()
        capacity = min(MAX_KRYLOV_DIMENSION, vector.numel())
        self.basis = vector.new_empty(capacity, vector.numel())
        self.images = torch.empty_like(self.basis)
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []
        self.exhausted = self.norm == 0
        self.next = start / (self.norm or 1.0)

    @property
    def is_full(self) -> bool:
        return len(self.diagonal) == len(self.basis)

    def extend(self) -> None:
        """Add one dimension: one product with K."""
        m = len(self.diagonal) + 1
        self.basis[m - 1] = self.next.flatten()
        image = self.product(self.root.apply(self.next))
        self.images[m - 1] = image.flatten()
        following = self.root.apply_transpose(image).flatten()
        basis = self.basis[:m]
        overlap = basis @ following
        following = following - overlap @ basis
        correction = basis @ following  # orthogonal to working precision only after a second pass
        following = following - correction @ basis
        self.diagonal.append((overlap[-1] + correction[-1]).item())
        self.off_diagonal.append(following.norm().item())
        if not math.isfinite(self.diagonal[-1]):
            raise FloatingPointError("gradient flow: a product with kernel_matrix is not finite.")
        eps = torch.finfo(following.dtype).eps
        self.ritz, self.rotation = eigh_tridiagonal(self.diagonal, self.off_diagonal[:-1])
        # Rounding of K makes zero eigenvalues of low-rank kernels negative. A vector may have no
        # part along the other eigenvectors.
        if self.ritz[0] < -math.sqrt(eps) * max(self.ritz[-1], self.root.largest_squared):
            raise NotPSDError(
                "kernel_matrix is not positive semi-definite: the curvature Mᵀ K M has eigenvalues "
                f"{self.ritz[0]:.3g} and {self.ritz[-1]:.3g} relative to the diagonal of K. Use a "
                "positive semi-definite kernel."
            )
        self.exhausted = self.off_diagonal[-1] <= 10 * eps * self.ritz[-1]
        self.next = (following / (self.off_diagonal[-1] or 1.0)).view_as(self.next)

    def coefficients(self, order: int, step: float) -> np.ndarray:
        """Return h β phi_{order+1}(-h T) e_1."""
        decay = phi(order + 1, step * self.ritz.clip(min=0))
        return step * self.norm * (self.rotation @ (decay * self.rotation[0]))

    def last_term(self, order: int, step: float) -> float:
        """Return how much the newest dimension moves the logits of ``h phi_order(h J) v``."""
        image = self.images[len(self.diagonal) - 1]
        return step * abs(self.coefficients(order, step)[-1].item()) * image.abs().max().item()

    def resolve(self, order: int, step: float, accuracy: float) -> bool:
        """Extend until ``h phi_order(h J) v`` reaches the accuracy; return whether it did."""
        while not self.exhausted:
            if self.diagonal and self.last_term(order, step) <= accuracy:
                return True
            if self.is_full:
                return False
            self.extend()
        return True

    def phi(self, order: int, step: float) -> Tensor:
        """Return phi_order(h J) v and K times it, stacked."""
        state = self.state / math.factorial(order)
        if not self.diagonal:
            return state
        m = len(self.diagonal)
        c = torch.as_tensor(self.coefficients(order, step), device="cpu").to(state)
        moved = (c @ self.basis[:m]).view_as(state[0])
        return state - torch.stack([self.root.apply(moved), (c @ self.images[:m]).view_as(moved)])
