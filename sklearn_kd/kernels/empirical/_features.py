"""Per-row gradients in factored form: what a layer adds to Θ, never as an n × P Jacobian.

A feature holds, for n rows, the gradients of some outputs with respect to some parameters.
R is the number of outputs with rows of their own in the kernel matrix: 1 for the trace, which sums
over the outputs, and K for the full matrix. Shapes, with S positions at which a layer is used
(pixels, tokens, repeated calls), and i inputs and o outputs of the layer:

==========  ================================  ===========================================
`Dense`     values (n, R, P)                  Θ = J J′ᵀ
`Outer`     left (n, S, i), right (n, R, S, o)  J = Σ_s right_s leftₛᵀ, so that
                                              Θ = Σ_{s,s′} (left_s · left′_s′)(right_s · right′_s′)
`Lookup`    ids (n, S), right (n, R, S, o)    `Outer` with one-hot left: left · left′ = [id = id′]
==========  ================================  ===========================================

With S = 1 and the rows of A, G as left and right, `Outer` is Θ_l = (A A′ᵀ) ∘ (G G′ᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

# Rows times positions of the blocks in which products over all pairs of positions are formed.
_POSITIONS = 512


class Feature(Protocol):
    """The operations that the gradients of one layer offer, in any form."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the feature, rows first."""

    def __getitem__(self, rows: slice) -> Self: ...

    def add_gram(self, other: Any, out: Tensor) -> None:
        """Add J J′ᵀ to ``out`` of shape (n R, m R); the other is of the same form."""

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every gradient, shape (n, R)."""

    def apply(self, change: Tensor) -> Tensor:
        """Return J w, shape (n, R), for a change w of the layer's parameters."""

    def pull_back(self, V: Tensor, like: Tensor) -> Tensor:
        """Return Σ_i Σ_k V_ik J_k(x_i), ``like`` a change of the parameters; V is (n, k)."""


@dataclass(frozen=True)
class Dense:
    """The gradients themselves, one row per input and kept output."""

    values: Tensor  # (n, R, P)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the feature, rows first."""
        return [self.values]

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.values[rows])

    def add_gram(self, other: Self, out: Tensor) -> None:
        """Add J J′ᵀ to ``out`` of shape (n R, m R)."""
        out.addmm_(self.values.flatten(0, 1), other.values.flatten(0, 1).T)

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every gradient, shape (n, R)."""
        return self.values.square().sum(dim=-1)

    def apply(self, change: Tensor) -> Tensor:
        """Return J w, shape (n, R), for a change w of the parameters of any shape, P in all."""
        return self.values @ change.ravel()

    def pull_back(self, V: Tensor, like: Tensor) -> Tensor:
        """Return Σ_i Σ_k V_ik J_k(x_i) for V of shape (n, k), the outputs side by side or apart."""
        return (V.ravel() @ self.values.reshape(V.numel(), -1)).reshape(like.shape)


@dataclass(frozen=True)
class Outer:
    """Gradients of a matrix as sums of outer products over positions."""

    left: Tensor  # (n, S, i)
    right: Tensor  # (n, R, S, o)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the feature, rows first."""
        return [self.left, self.right]

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.left[rows], self.right[rows])

    def add_gram(self, other: Self, out: Tensor) -> None:
        """Add Σ_{s,s′} (left_s · left′_s′)(right_s · right′_s′) to ``out``, (n R, m R)."""
        _, R, S, _ = self.right.shape
        if S == R == 1:
            right = self.right[:, 0, 0] @ other.right[:, 0, 0].T
            out.addcmul_(self._left_gram(other)[:, 0, :, 0], right)
            return
        step = max(1, _POSITIONS // (R * S))
        n, m = len(self.left), len(other.left)
        for i in range(0, n, step):
            x = self[i : i + step]
            for j in range(0, m, step):
                y = other[j : j + step]
                right = x.right.flatten(0, 2) @ y.right.flatten(0, 2).T
                right = right.reshape(len(x.left), R, S, len(y.left), R, S)
                left = x._left_gram(y)[:, None, :, :, None, :]
                corner = out[i * R : (i + step) * R, j * R : (j + step) * R]
                corner += (left * right).sum(dim=(2, 5)).reshape(corner.shape)

    def _left_gram(self, other: Self) -> Tensor:
        """Return left · left′ for all pairs of positions, shape (n, S, m, S)."""
        S = self.left.shape[1]
        gram = self.left.flatten(0, 1) @ other.left.flatten(0, 1).T
        return gram.reshape(len(self.left), S, len(other.left), S)

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every gradient, shape (n, R)."""
        right = self.right @ self.right.mT
        return (self._own_left_gram()[:, None] * right).sum(dim=(-1, -2))

    def _own_left_gram(self) -> Tensor:
        """Return left · left of the positions of each row, shape (n, S, S)."""
        return self.left @ self.left.mT

    def apply(self, change: Tensor) -> Tensor:
        """Return J w, shape (n, R), for a change w of shape (o, i)."""
        return (self.right * (self.left @ change.T)[:, None]).sum(dim=(-1, -2))

    def pull_back(self, V: Tensor, like: Tensor) -> Tensor:
        """Return Σ_i Σ_k V_ik J_k(x_i) for V of shape (n, k), the outputs side by side or apart."""
        return self._mixed(V).flatten(0, 1).T @ self.left.flatten(0, 1)

    def _mixed(self, V: Tensor) -> Tensor:
        """Return Σ_k V_ik right_k, shape (n, S, o)."""
        if V.shape[1] == 1:
            return self.right[:, 0] * V[:, :, None]
        if self.right.shape[1] == V.shape[1]:
            return torch.einsum("nk,nkso->nso", V, self.right)
        apart = self.right[:, 0].unflatten(-1, (V.shape[1], -1))
        return torch.einsum("nk,nsko->nso", V, apart)


@dataclass(frozen=True)
class Lookup(Outer):
    """`Outer` whose left factors are one-hot: the rows of an embedding that a row looks up."""

    left: Tensor  # (n, S) indices

    def _left_gram(self, other: Self) -> Tensor:
        same = self.left[:, :, None, None] == other.left[None, None]
        return same.to(self.right.dtype)

    def _own_left_gram(self) -> Tensor:
        return (self.left[:, :, None] == self.left[:, None]).to(self.right.dtype)

    def apply(self, change: Tensor) -> Tensor:
        """Return J w, shape (n, R), for a change w of shape (n_tokens, o)."""
        return (self.right * change[self.left][:, None]).sum(dim=(-1, -2))

    def pull_back(self, V: Tensor, like: Tensor) -> Tensor:
        """Return Σ_i Σ_k V_ik J_k(x_i) for V of shape (n, k), like (n_tokens, o)."""
        mixed = self._mixed(V).flatten(0, 1)
        return torch.zeros_like(like).index_add_(0, self.left.flatten(), mixed)


def dense(gradients: Tensor, full: bool) -> Dense:
    """Return gradients (n, K, ...) as a feature, with the outputs side by side or apart."""
    n, n_outputs = gradients.shape[:2]
    return Dense(gradients.reshape(n, n_outputs if full else 1, -1))
