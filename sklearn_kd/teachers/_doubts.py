"""What may be wrong with a teacher, said once for a fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_kd._logits import class_indices
from sklearn_kd._sklearn import was_fitted
from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import SaturatedTeacherWarning
from sklearn_kd.rows._labels import NO_LABEL
from sklearn_kd.rows._training_rows import TrainingRows
from sklearn_kd.teachers._cross_fitting import declines_weights, takes_weights
from sklearn_kd.teachers._logits_of import Logits, Reading, name_of

# Share of rows on which a teacher's class may not be that of its scores, of its probabilities.
_FEW, _MOST = 0.1, 0.5
# Fewer rows may all be certain, and right, by chance.
_ROWS_TO_TELL = 50


def warn_if_fitted(teacher: Any, n_rows: int) -> None:
    """Warn of a teacher whose fit is lost, as clones of it are fitted anew."""
    if was_fitted(teacher) and not was_fitted(clone(teacher)):
        warn(
            f"teacher={name_of(teacher)} is fitted, but clones of it are fitted anew, to the "
            f"{n_rows} rows of this fit. Pass FrozenEstimator(teacher) to use it as it is, or "
            "clone(teacher) for an unfitted one.",
            UserWarning,
        )


def warn_if_weights_are_lost(teacher: Any, sample_weight: np.ndarray | None) -> None:
    """Warn of weights that do not reach the teacher, other than 0 and equal ones."""
    if sample_weight is None or takes_weights(teacher) or declines_weights(teacher):
        return
    positive = sample_weight[sample_weight > 0]
    if (positive != positive[0]).any():
        warn(
            f"sample_weight does not reach teacher={name_of(teacher)}: rows of weight 0 are left "
            "out, but all others count the same for it. Use a teacher whose fit takes "
            "sample_weight; for a pipeline or a search enable metadata routing and request it, by "
            "set_fit_request(sample_weight=True) of its steps.",
            UserWarning,
        )


def warn_of(teacher: Any, z_t: Logits, reading: Reading) -> None:
    """Say what the teacher's logits are not: its classes, or finite log-odds.

    Raises
    ------
    ValueError
        If the class of the logits is another than the teacher's too often to be chance.
    """
    name, n_rows = name_of(teacher), len(z_t.values)
    if z_t.n_disagreeing:
        share = z_t.n_disagreeing / n_rows
        is_word = reading.method == "decision_function" and not hasattr(teacher, "predict_proba")
        what = (
            f"teacher={name}: on {z_t.n_disagreeing} of {n_rows} rows predict chooses another "
            f"class than the largest value of {z_t.method}"
        )
        if share > (_FEW if is_word else _MOST):
            raise ValueError(
                f"{what}, so that its columns are not the classes' logits in the order of "
                "classes_; votes of pairs of classes (decision_function_shape='ovo') are not. "
                "Calibrate the teacher by CalibratedClassifierCV(teacher), or pass teacher_logits."
            )
        warn(
            f"{what}. The student learns the latter; calibrate the teacher, as by "
            "CalibratedClassifierCV(teacher), for one that says the same twice.",
            UserWarning,
        )
    if z_t.n_zero:
        if reading.lifts_only_zeros:
            done = (
                f"zeros were lifted to at most {reading.floor:.2g}, one over the rows at hand. Set "
                "probability_floor to 1 / n if the teacher was fitted on n rows"
            )
        else:
            done = f"lower ones than {reading.floor:.2g} were lifted to it (probability_floor)"
        warn(
            f"teacher={name} gives some class a probability of 0 on {z_t.n_zero} of {n_rows} rows: "
            f"{done}. To know better, calibrate it, as by CalibratedClassifierCV(teacher).",
            SaturatedTeacherWarning,
        )


def warn_if_memorised(teacher: Any, z_t: Logits, rows: TrainingRows, kept: np.ndarray) -> None:
    """Warn of a teacher that is certain, and right, in every row, as on those it has learnt."""
    labelled = kept[rows.labels[kept] != NO_LABEL]
    is_right = class_indices(z_t.values).numpy()[labelled] == rows.labels[labelled]
    if z_t.is_certain and len(labelled) >= _ROWS_TO_TELL and is_right.all():
        warn(
            f"teacher={name_of(teacher)} is certain of the label of each of {len(labelled)} rows. "
            "If it was trained on these rows it hands back their labels, and scores on them "
            "mislead: distil on other rows, or pass it unfrozen to be cross-fitted.",
            UserWarning,
        )


def warn_if_certain(what: str, is_certain: bool, n_rows: int) -> None:
    """Warn of logits that are certain in every row, where no label tells whether they are right."""
    if is_certain and n_rows >= _ROWS_TO_TELL:
        warn(
            f"{what} is certain in each of {n_rows} rows. If the teacher was trained on these rows "
            "it hands back their labels, and held-out scores of a student that starts from here "
            "mislead: use other rows, or cross-fitted logits.",
            UserWarning,
        )
