"""Plots of what the library computes, as displays in the style of scikit-learn."""

from sklearn_kd.inspection._angle_distribution_display import AngleDistributionDisplay
from sklearn_kd.inspection._data_inefficiency_display import DataInefficiencyDisplay
from sklearn_kd.inspection._effective_logits_display import EffectiveLogitsDisplay
from sklearn_kd.inspection._hard_label_effect_display import HardLabelEffectDisplay
from sklearn_kd.inspection._plotting import soft_ratio_color
from sklearn_kd.inspection._selection_display import SelectionDisplay
from sklearn_kd.inspection._transfer_risk_display import TransferRiskDisplay

__all__ = [
    "AngleDistributionDisplay",
    "DataInefficiencyDisplay",
    "EffectiveLogitsDisplay",
    "HardLabelEffectDisplay",
    "SelectionDisplay",
    "TransferRiskDisplay",
    "soft_ratio_color",
]
