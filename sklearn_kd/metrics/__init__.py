"""How well a student follows its teacher: metrics on arrays, and scorers on fitted students."""

from sklearn_kd._array import on_arrays
from sklearn_kd.metrics import _inefficiency, _risk
from sklearn_kd.metrics._scorers import (
    DistillationScorer,
    neg_data_inefficiency_scorer,
    neg_transfer_risk_scorer,
)

__all__ = [
    "DistillationScorer",
    "data_inefficiency",
    "neg_data_inefficiency_scorer",
    "neg_transfer_risk_scorer",
    "transfer_risk",
]

data_inefficiency = on_arrays(_inefficiency.data_inefficiency)
transfer_risk = on_arrays(_risk.transfer_risk)
