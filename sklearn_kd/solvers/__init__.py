"""Solvers of the student's equations, each with its options, its plan of bytes and its solve."""

from sklearn_kd.solvers._cholesky import Cholesky
from sklearn_kd.solvers._nystrom import Nystrom
from sklearn_kd.solvers._pcg import PCG
from sklearn_kd.solvers._refinement import Refinement

__all__ = ["PCG", "Cholesky", "Nystrom", "Refinement"]
