"""Solvers of the student's equations: each its options, its plan of bytes, its solve."""
