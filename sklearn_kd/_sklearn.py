"""The only file that imports scikit-learn's private or experimental names."""

from typing import Any

from sklearn.base import _fit_context as fit_context
from sklearn.callback import CallbackContext, CallbackSupportMixin
from sklearn.metrics._scorer import _BaseScorer as BaseScorer
from sklearn.metrics._scorer import _PassthroughScorer as PassthroughScorer
from sklearn.model_selection._validation import _fit_and_score as fit_in_search
from sklearn.model_selection._validation import _score as score_in_search
from sklearn.utils._array_api import check_same_namespace, get_namespace, move_to
from sklearn.utils._indexing import _safe_indexing as safe_indexing
from sklearn.utils._missing import is_pandas_na
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _is_fitted as was_fitted

__all__ = [
    "BaseScorer",
    "CallbackContext",
    "CallbackSupportMixin",
    "HasMethods",
    "Interval",
    "PassthroughScorer",
    "StrOptions",
    "callbacks_of",
    "check_same_namespace",
    "check_sample_weight",
    "fit_context",
    "fit_in_search",
    "get_namespace",
    "is_pandas_na",
    "move_to",
    "nest_deeper",
    "safe_indexing",
    "score_in_search",
    "validate_parameter_constraints",
    "was_fitted",
]


def nest_deeper(context: CallbackContext) -> None:
    """Count what is fitted in a task as one more level for ``max_propagation_depth``."""
    context._propagation_depth += 1


def callbacks_of(estimator: Any) -> list:
    """Return the callbacks that an estimator was given, or has from the one that fits it."""
    return getattr(estimator, "_skl_callbacks", [])
