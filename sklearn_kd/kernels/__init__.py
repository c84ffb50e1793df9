"""Kernels Θ(x, x′)."""
