"""The errors and warnings that sklearn_kd raises on its own account."""

import numpy as np
from scipy.linalg import LinAlgWarning

__all__ = [
    "IllConditionedWarning",
    "LongFitWarning",
    "MemoryBudgetError",
    "NoTeacherError",
    "NotPSDError",
    "SaturatedTeacherWarning",
    "SeenLabelsWarning",
    "SinglePrecisionWarning",
    "UnscaledFeaturesWarning",
]


class NotPSDError(np.linalg.LinAlgError):
    """A kernel matrix is not positive semi-definite, beyond what rounding explains.

    Raised after the largest admissible jitter has failed. It is a
    :class:`numpy.linalg.LinAlgError`, hence a :class:`ValueError`.
    """


class MemoryBudgetError(MemoryError):
    """A computation would need more memory than its budget; nothing was allocated."""


class NoTeacherError(ValueError):
    """A student that was fitted on given logits has no teacher to ask about other rows."""


class IllConditionedWarning(LinAlgWarning):
    """The kernel matrix is so ill-conditioned that rounding decides part of the answer."""


class LongFitWarning(UserWarning):
    """A fit that has just begun will take minutes or more; it names what would be faster."""


class SaturatedTeacherWarning(UserWarning):
    """The teacher gives some classes a probability of exactly 0, whose log-odds are infinite."""


class SeenLabelsWarning(UserWarning):
    """Labels that a student is scored on have reached it by way of its teacher."""


class SinglePrecisionWarning(UserWarning):
    """A computation in float64 was asked for, and only one in float32 fitted the memory."""


class UnscaledFeaturesWarning(UserWarning):
    """One column varies over 300 times as much as another one, which the kernel hardly sees."""
