"""Kernels Θ(x, x′)."""

from ._ntk import NTK

__all__ = ["NTK"]
