"""What students take as a teacher."""

from __future__ import annotations

from typing import Any

from sklearn_kd._sklearn import HasMethods


class TeacherConstraint(HasMethods):
    """What the parameter ``teacher`` may be, in an error of scikit-learn's."""

    def __init__(self) -> None:
        super().__init__("fit")

    def is_satisfied_by(self, value: Any) -> bool:
        """Whether ``value`` is an estimator, and no class."""
        return not isinstance(value, type) and super().is_satisfied_by(value)

    def __str__(self) -> str:
        return (
            "a classifier with a method 'fit', such as LogisticRegression(), for a torch module "
            "TorchTeacher(module, classes),"
        )
