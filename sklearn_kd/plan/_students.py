"""The students that a plan compares: kernels, and networks with how they are trained."""

from __future__ import annotations

from typing import Any, NamedTuple

from sklearn.base import clone
from torch import nn

from sklearn_kd._kernel_machine import kernel_to_use
from sklearn_kd.students._torch_student import TorchStudent

# The recipe of the one network that tells how far training goes, where the student names none:
# hard labels tell most of that.
SOFT_RATIO_OF_RUN = 0.5

TAKEN = (
    "a kernel such as NTK(), a torch.nn.Module, a TorchStudent (which also takes a function that "
    "builds the network), or a dict or list of these"
)


class Student(NamedTuple):
    """One that is compared: a kernel, or a network."""

    name: str
    kernel: Any  # None for a network
    network: TorchStudent | None  # not fitted


def students_of(given: Any) -> list[Student]:
    """Return the students that a plan's parameter ``student`` stands for.

    Raises
    ------
    TypeError
        If one is neither a kernel nor a network.
    ValueError
        If there is none.
    """
    if isinstance(given, dict):
        named = list(given.items())
    elif isinstance(given, list | tuple):
        named = [(f"student {number}", one) for number, one in enumerate(given, 1)]
    else:
        return [_student("student", given)]
    if not named:
        raise ValueError(f"student={given!r} holds no student; it must be {TAKEN}.")
    return [_student(str(name), one) for name, one in named]


def _student(name: str, given: Any) -> Student:
    if isinstance(given, TorchStudent):
        return Student(name, None, clone(given))
    if isinstance(given, nn.Module):
        return Student(name, None, TorchStudent(given, soft_ratio=SOFT_RATIO_OF_RUN))
    if given is None or hasattr(given, "diag") or hasattr(given, "to_torch"):
        return Student(name, kernel_to_use(given), None)
    raise TypeError(f"student={given!r} is a {type(given).__name__}; it must be {TAKEN}.")
