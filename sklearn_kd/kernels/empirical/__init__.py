"""Tangent kernels of finite networks at their current weights."""
