"""Tangent kernels of infinitely wide networks."""
