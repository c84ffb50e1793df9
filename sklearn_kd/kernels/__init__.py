"""Kernels Θ(x, x′)."""

from sklearn_kd.kernels._empirical_ntk import EmpiricalNTK
from sklearn_kd.kernels._ntk import NTK

__all__ = ["NTK", "EmpiricalNTK"]
