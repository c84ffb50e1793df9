"""How well a student follows its teacher: metrics on arrays, and scorers on fitted students."""

from sklearn_kd._array import on_arrays
from sklearn_kd.metrics import _angles, _bounds, _hard_labels, _inefficiency, _risk
from sklearn_kd.metrics._forecast import learning_curve_forecast
from sklearn_kd.metrics._scorers import (
    DistillationScorer,
    neg_data_inefficiency_scorer,
    neg_transfer_risk_scorer,
)

__all__ = [
    "DistillationScorer",
    "accumulative_angle_distribution",
    "binomial_upper_bound",
    "data_inefficiency",
    "feature_angles",
    "hard_label_effect",
    "learning_curve_forecast",
    "neg_data_inefficiency_scorer",
    "neg_transfer_risk_scorer",
    "phuong_lampert_bound",
    "power_function_bound",
    "transfer_risk",
    "transfer_risk_bound",
    "weight_change_angles",
]

accumulative_angle_distribution = on_arrays(_angles.accumulative_angle_distribution)
binomial_upper_bound = on_arrays(_bounds.binomial_upper_bound)
data_inefficiency = on_arrays(_inefficiency.data_inefficiency)
feature_angles = on_arrays(_angles.feature_angles)
hard_label_effect = on_arrays(_hard_labels.hard_label_effect)
phuong_lampert_bound = on_arrays(_bounds.phuong_lampert_bound)
power_function_bound = on_arrays(_bounds.power_function_bound)
transfer_risk = on_arrays(_risk.transfer_risk)
transfer_risk_bound = on_arrays(_bounds.transfer_risk_bound)
weight_change_angles = on_arrays(_angles.weight_change_angles)
