"""Rows of an estimator: checked, copies merged, in memory or read block by block."""

from sklearn_kd.rows._copies import MergedRows, merge_rows

__all__ = ["MergedRows", "merge_rows"]
