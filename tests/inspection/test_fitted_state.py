"""What a display says of a fitted estimator was true at its fit, whatever is set afterwards."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sklearn_kd.inspection import (
    AngleDistributionDisplay,
    DataInefficiencyDisplay,
    EffectiveLogitsDisplay,
    HardLabelEffectDisplay,
    TransferRiskDisplay,
)

DRAW = {
    "angles": lambda s, X, y: AngleDistributionDisplay.from_estimator(s),
    "inefficiency": lambda s, X, y: DataInefficiencyDisplay.from_estimator(s, sizes=[20, 60]),
    "effective logits": lambda s, X, y: EffectiveLogitsDisplay.from_estimator(s),
    "hard labels": lambda s, X, y: HardLabelEffectDisplay.from_estimator(
        s, X, y, n_bootstraps=20, random_state=0
    ),
    "risk": lambda s, X, y: TransferRiskDisplay.from_estimator(s, X, y=y, sizes=[20, 60]),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_parameters_set_after_the_fit_change_nothing(student, cancer, draw):
    *_, X, y, _ = cancer
    fitted = copy.deepcopy(student)
    before = draw(fitted, X, y)
    fitted.set_params(soft_ratio=0.3, temperature=7.0, temperature_scaling="squared", ridge=1.0)
    after = draw(fitted, X, y)
    for name, value in vars(before).items():
        if not name.endswith("_"):  # artists
            np.testing.assert_equal(vars(after)[name], value, err_msg=name)
    plt.close("all")
