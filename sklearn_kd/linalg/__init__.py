"""Solves with kernel matrices: the tangent frame, its factorization, and the memory it takes."""

from sklearn_kd.linalg._frame import TangentFrame

__all__ = ["TangentFrame"]
