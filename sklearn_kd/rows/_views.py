"""Rows in two forms: as a student's kernel takes them, and as its teacher reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TwoViews:
    """The same rows twice, in the same order: numbers for the student, as given for the teacher."""

    of_student: Any  # (n, d) numbers
    of_teacher: Any  # n rows of any kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the student's rows."""
        return self.of_student.shape

    def __len__(self) -> int:
        return self.shape[0]


def rows_of_student(X: Any) -> Any:
    """Return the rows that a kernel takes."""
    return X.of_student if isinstance(X, TwoViews) else X


def rows_of_teacher(X: Any) -> Any:
    """Return the rows that a teacher reads."""
    return X.of_teacher if isinstance(X, TwoViews) else X
