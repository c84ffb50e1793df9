r"""phi functions of a curvature times a kernel matrix, by short Lanczos recurrences.

======  ==============================================  ==========================
symbol  meaning                                         name, shape
======  ==============================================  ==========================
K       kernel matrix over its unit                     ``product``, as a map
M       root of the loss's curvature, W = M Mᵀ          ``root``
μ       decay of the coefficients                       ``decay`` (B,)
J       Jacobian of the flow, -W K - μ                  never formed
v       the vector acted on                             ``vectors`` (B, C, n)
V       orthonormal basis, one row a dimension          ``basis`` (B, m, P C n)
T       V (Mᵀ K M) Vᵀ, tridiagonal                      ``diagonal``,
                                                        ``off_diagonal`` (B, m)
======  ==============================================  ==========================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.training._function_space import CurvatureRoot, KernelProduct

__all__ = ["MAX_KRYLOV_DIMENSION", "KrylovSpaces", "Room", "phi", "phi_difference"]

MAX_KRYLOV_DIMENSION = 100


def phi(order: int, x: np.ndarray) -> np.ndarray:
    """Return phi_order(-x) for x >= 0."""
    # phi_0(z) = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z;  phi_k(z) = sum_i z^i / (i + k)!
    z = -np.asarray(x, dtype=np.float64)
    near = np.where(z > -1, z, 0.0)  # the recursion cancels near 0, the series is short there
    series = np.zeros_like(z)
    for i in reversed(range(18)):
        series = series * near + 1 / math.factorial(i + order)
    far = np.where(z > -1, -1.0, z)
    recursion = np.exp(far)
    for k in range(order):
        recursion = (recursion - 1 / math.factorial(k)) / far
    return np.where(z > -1, series, recursion)


def phi_difference(order: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the divided difference of phi_order between -x - y and -x, for x, y >= 0."""
    # d_k = (phi_k(z) - phi_k(u)) / (z - u),  z = -x - y,  u = -x;  d_k = phi_{k+1}(z) for u = 0.
    # d_0 = e^u (e^(z-u) - 1) / (z - u),  d_k = (d_{k-1} - phi_k(u)) / z, which cancels near z = 0:
    # there d_k = sum_i (z^i - u^i) / (z - u) / (i + k)!.
    if not np.any(x):
        return phi(order + 1, y)
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    u, z = -x, -x - y
    is_near = z > -1
    near_u, near_z = np.where(is_near, u, 0.0), np.where(is_near, z, 0.0)
    series, power = np.zeros_like(z), np.zeros_like(z)
    for i in range(1, 20):
        power = power * near_z + near_u ** (i - 1)  # (z^i - u^i) / (z - u)
        series += power / math.factorial(i + order)
    far = np.where(is_near, -1.0, z)
    gap = np.where(y > 0, y, 1.0)
    recursion = np.exp(u) * np.where(y > 0, -np.expm1(-gap) / gap, 1.0)
    for k in range(1, order + 1):
        recursion = (recursion - phi(k, x)) / far
    return np.where(is_near, series, recursion)


class Room:
    """Memory that the spaces of one step after another use: fresh pages cost a tenth of a flow."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, int, int], like: Tensor) -> Tensor:
        """Return a tensor of undefined values, which ends that of the same name taken before."""
        held = self._held.get(name)
        if held is None or held.shape[1:] != shape[1:] or len(held) < shape[0]:
            self._held[name] = held = like.new_empty(shape)
        return held[: shape[0]]


class KrylovSpaces:
    r"""phi functions of the Jacobian J = -W K - μ of B runs, each acting on one vector v.

    A state is a stacked pair (a, K a), so logits never cost a product of their own. The runs whose
    space is too small are extended together, by one product with K.
    """

    # J is not symmetric, B = Mᵀ K M is:
    #     phi_k(h J) v = phi_k(-h μ) v - h M d_k Mᵀ K v,
    # d_k the divided difference of phi_k between -h (B + μ) and -h μ; for μ = 0 phi_{k+1}(-h B).
    # Lanczos: B V = V T + ..., first column of V = Mᵀ K v / β, so
    #     d_k(B) Mᵀ K v = β V d_k(T) e_1,
    # and the stored columns of K M V give K times it.
    def __init__(
        self,
        product: KernelProduct,
        root: CurvatureRoot,
        vectors: Tensor,
        decay: np.ndarray | None = None,
        room: Room | None = None,
    ) -> None:
        self.product, self.root = product, root
        self.state = torch.stack([vectors, product(vectors)])
        start = root.apply_transpose(self.state[1])
        norm = start.flatten(1).norm(dim=1)
        self.norm = host(norm)
        self.decay = np.zeros(len(vectors)) if decay is None else decay
        self.next = start / torch.where(norm > 0, norm, 1)[:, None, None]
        self.capacity = min(MAX_KRYLOV_DIMENSION, start[0].numel())
        n_runs, room = len(vectors), room or Room()
        self.basis, self.images = (
            room.take(name, (n_runs, self.capacity, like[0].numel()), like)
            for name, like in (("basis", start), ("images", vectors))
        )
        self.size = np.zeros(n_runs, dtype=int)
        self.exhausted = self.norm == 0
        self.diagonal = np.zeros((n_runs, self.capacity))
        self.off_diagonal = np.zeros((n_runs, self.capacity))
        self.ritz = np.zeros((n_runs, self.capacity))
        self.rotation = np.zeros((n_runs, self.capacity, self.capacity))  # T's vectors, as columns
        self.width = 0  # of the largest T that was diagonalised
        self.newest_image = np.zeros(n_runs)  # the largest entry of the newest column of K M V

    @property
    def n_products(self) -> np.ndarray:
        """Products with K, by run."""
        return self.size + 1

    def resolve(self, order: int, steps: np.ndarray, accuracy: float) -> np.ndarray:
        """Extend until ``h phi_order(h J) v`` reaches the accuracy; return which runs did."""
        resolved = self.exhausted | self._is_resolved(order, steps, accuracy)
        next_check = 0
        while (active := ~resolved & (self.size < self.capacity)).any():
            self._extend(active)
            m = int(self.size[active][0])
            if m >= next_check or m == self.capacity:
                self._diagonalise(active)
                resolved |= self.exhausted | self._is_resolved(order, steps, accuracy)
                next_check = math.ceil(1.1 * m)  # an eigenvalue problem for each run
        return resolved

    def phi(self, queries: Sequence[tuple[int, np.ndarray]]) -> list[Tensor]:
        """Return phi_order(h J) v and K times it, stacked, for several (order, h)."""
        coefs = [self._coefficients(order, steps) for order, steps in queries]
        c = torch.as_tensor(np.stack(coefs, axis=1), device="cpu").to(self.state)  # (B, Q, m)
        m = c.shape[2]
        results = []
        if m:
            moved, images = c @ self.basis[:, :m], c @ self.images[:, :m]
        for query, (order, steps) in enumerate(queries):
            own = column(phi(order, steps * self.decay), self.state)
            state = own * self.state
            if m:
                part = self.root.apply(moved[:, query].view_as(self.next))
                state = state - torch.stack([part, images[:, query].view_as(part)])
            results.append(state)
        return results

    def _extend(self, active: np.ndarray) -> None:
        """Add one dimension to the spaces of some runs, which all have the same size."""
        runs = selection(active, self.next.device)
        m = int(self.size[active][0])
        root, following = self.root.of(runs), self.next[runs]
        image = self.product(root.apply(following))
        if (ended := ~active & (self.size <= m)).any():
            others = selection(ended, self.next.device)
            self.basis[others, m] = self.images[others, m] = 0
        self.basis[runs, m] = following.flatten(1)
        self.images[runs, m] = image.flatten(1)
        following = root.apply_transpose(image).flatten(1)[:, :, None]
        basis = self.basis[runs, : m + 1]
        last = basis[:, -2:]  # the others' overlaps are rounding alone, which one pass removes
        overlap = last @ following
        following = following - last.mT @ overlap
        correction = basis @ following
        following -= basis.mT @ correction
        norm = following.flatten(1).norm(dim=1)
        own = overlap[:, -1, 0] + correction[:, -1, 0]
        numbers = torch.stack([own, norm, image.abs().amax((1, 2))])
        self.diagonal[active, m], self.off_diagonal[active, m], self.newest_image[active] = host(
            numbers
        )
        if not np.isfinite(self.diagonal[active, m]).all():
            raise FloatingPointError("gradient flow: a product with kernel_matrix is not finite.")
        scale = torch.where(norm > 0, norm, 1)[:, None, None]
        self.next[runs] = following.view_as(self.next[runs]) / scale
        self.size[active] = m + 1

    def _diagonalise(self, active: np.ndarray) -> None:
        """Find eigenvalues and eigenvectors of T of some runs, and whether their space is whole."""
        m = int(self.size[active][0])
        tridiagonal = np.zeros((active.sum(), m, m))
        on, below = np.arange(m), np.arange(m - 1)
        tridiagonal[:, on, on] = self.diagonal[active, :m]
        tridiagonal[:, below + 1, below] = self.off_diagonal[active, : m - 1]  # eigh reads below
        self.width = max(self.width, m)
        ritz, self.rotation[active, :m, :m] = np.linalg.eigh(tridiagonal)
        self.ritz[active, :m] = ritz
        eps = torch.finfo(self.state.dtype).eps
        # Rounding of K makes zero eigenvalues of low-rank kernels negative. A vector may have no
        # part along the other eigenvectors.
        size = np.maximum(ritz[:, -1], host(self.root.largest_squared)[active])
        is_negative = ritz[:, 0] < -math.sqrt(eps) * size
        if is_negative.any():
            worst = ritz[is_negative][0]
            raise NotPSDError(
                "kernel_matrix is not positive semi-definite: the curvature Mᵀ K M has eigenvalues "
                f"{worst[0]:.3g} and {worst[-1]:.3g} relative to the diagonal of K. Use a positive "
                "semi-definite kernel."
            )
        self.exhausted[active] = self.off_diagonal[active, m - 1] <= 10 * eps * ritz[:, -1]

    def _coefficients(self, order: int, steps: np.ndarray) -> np.ndarray:
        """Return h β d_order(T) e_1, (B, m); 0 beyond the size of a space."""
        h, m = steps[:, None], self.width
        ritz, rotation = self.ritz[:, :m].clip(min=0), self.rotation[:, :m, :m]
        if m == 0:
            return ritz
        differences = phi_difference(order, h * self.decay[:, None], h * ritz)
        turned = (rotation @ (differences * rotation[:, 0])[:, :, None])[:, :, 0]
        return h * self.norm[:, None] * turned

    def _is_resolved(self, order: int, steps: np.ndarray, accuracy: float) -> np.ndarray:
        """Whether the newest dimension moves the logits of ``h phi_order(h J) v`` by little."""
        if self.width == 0:
            return np.zeros(len(self.size), dtype=bool)
        last = np.maximum(self.size - 1, 0)[:, None]
        newest = np.take_along_axis(self._coefficients(order, steps), last, axis=1)[:, 0]
        return (self.size > 0) & (steps * np.abs(newest) * self.newest_image <= accuracy)


def host(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def column(values: np.ndarray, like: Tensor) -> Tensor:
    """Return one number for each run, to multiply (B, C, n) with."""
    return torch.as_tensor(values, device="cpu").to(like)[:, None, None]


def selection(active: np.ndarray, device: torch.device) -> Any:
    """Return an index of some runs; a slice of all where it can be, which copies nothing."""
    if active.all():
        return slice(None)
    return torch.as_tensor(np.flatnonzero(active), device="cpu").to(device)
