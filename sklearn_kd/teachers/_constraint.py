"""What students take as a teacher."""

from __future__ import annotations

from typing import Any

from sklearn_kd._sklearn import HasMethods

TAKEN = (
    "a classifier with a method 'fit', such as LogisticRegression(), for a torch module "
    "TorchTeacher(module, classes)"
)


def is_teacher(value: Any) -> bool:
    """Whether ``value`` is an estimator, and no class."""
    return not isinstance(value, type) and hasattr(value, "fit")


class TeacherConstraint(HasMethods):
    """What the parameter ``teacher`` may be, in an error of scikit-learn's."""

    def __init__(self) -> None:
        super().__init__("fit")

    def is_satisfied_by(self, value: Any) -> bool:
        """Whether ``value`` is a teacher, or a list; what is in it, `members_of` checks."""
        return isinstance(value, (list, tuple)) or is_teacher(value)

    def __str__(self) -> str:
        return f"{TAKEN}, a list of several,"
