"""
What do my α and T² mean?
=========================

Six recipes that look alike, on breast cancer (two classes): how much soft label each one really
asks for, which errors of the teacher it overrules, and what that does to the student.

The teacher is a logistic regression trained on a tenth of the rows. The student gets half of the
others, and the rest are for testing.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import diagnose_teacher, equivalent_soft_ratio
from sklearn_kd.inspection import EffectiveLogitsDisplay

T = 4.0
X, y = load_breast_cancer(return_X_y=True)

# %%
# Every recipe is a soft ratio
# ----------------------------
#
# `kl` is the Kullback-Leibler divergence of the softened probabilities, `ce` the cross-entropy of
# the hard labels. The factor T² and the default reduction of `torch.nn.KLDivLoss`, which divides by
# the number of classes too, both hide in the soft ratio ρ.

RECIPES = {
    "0.5 T² kl + 0.5 ce": {"weight": 0.5, "temperature_scaling": "squared"},
    "0.7 T² kl + 0.3 ce": {"weight": 0.7, "temperature_scaling": "squared"},
    "0.9 T² kl + 0.1 ce": {"weight": 0.9, "temperature_scaling": "squared"},
    "0.9 T² KLDivLoss() + 0.1 ce": {
        "weight": 0.9,
        "temperature_scaling": "squared",
        "reduction": "mean",
        "n_classes": 2,
    },
    "0.9 kl + 0.1 ce": {"weight": 0.9, "temperature_scaling": "none"},
    "0.5 kl + 0.5 ce": {"weight": 0.5, "temperature_scaling": "none"},
}
SOFT_RATIOS = [float(equivalent_soft_ratio(temperature=T, **recipe)) for recipe in RECIPES.values()]


def split(seed):
    """Return scaled rows and labels of the teacher, the student and the test."""
    X_teacher, X_rest, y_teacher, y_rest = train_test_split(
        X, y, train_size=0.1, stratify=y, random_state=seed
    )
    X_student, X_test, y_student, y_test = train_test_split(
        X_rest, y_rest, train_size=0.5, stratify=y_rest, random_state=seed
    )
    scaler = StandardScaler().fit(X_teacher)
    rows = map(scaler.transform, (X_teacher, X_student, X_test))
    return zip(rows, (y_teacher, y_student, y_test), strict=True)


# %%
# What each recipe does to the teacher, and to the student
# --------------------------------------------------------
#
# :func:`~sklearn_kd.distillation.diagnose_teacher` counts, without any fit, the teacher's errors
# that the hard labels overrule. `prefix_path` then gives the error of all six students from one
# factorization. Averages over 20 random splits.

tables, errors, teacher_errors = [], [], []
for seed in range(20):
    (X_teacher, y_teacher), (X_student, y_student), (X_test, y_test) = split(seed)
    teacher = LogisticRegression().fit(X_teacher, y_teacher)
    student = LinearizedKDStudent(FrozenEstimator(teacher), temperature=T)
    student.fit(X_student, y_student)
    tables.append(
        diagnose_teacher(
            student.teacher_logits_, y_student, soft_ratios=SOFT_RATIOS, temperatures=T
        )
    )
    path = student.prefix_path(
        X_test,
        y=y_test,
        sizes=[len(student.X_fit_)],
        param_grid=[{"soft_ratio": [soft_ratio]} for soft_ratio in SOFT_RATIOS],
    )
    errors.append(path.error[:, 0, 0])
    teacher_errors.append(1 - teacher.score(X_test, y_test))


def mean_over_splits(name):
    return np.mean([table[name] for table in tables], axis=0)


overruled = 100 * mean_over_splits("n_errors_overruled") / mean_over_splits("n_teacher_errors")
error = 100 * np.mean(errors, axis=0)
standard_error = 100 * np.std(errors, axis=0) / np.sqrt(len(errors))
print(f"T = {T:g}; the teacher's test error is {100 * np.mean(teacher_errors):.1f} %")
print(f"{'recipe':29}{'ρ':>7}{'margin':>8}{'overruled':>11}{'student error':>17}")
for i, recipe in enumerate(RECIPES):
    print(
        f"{recipe:29}{SOFT_RATIOS[i]:7.3f}{tables[0]['correction_margin'][i]:8.2f}"
        f"{overruled[i]:9.0f} %{error[i]:10.1f} ± {standard_error[i]:.1f} %"
    )

# %%
# The same numbers 0.9 and 0.1 mean a margin of 0.2 with T² and of 3.8 without. With T² the hard
# labels overrule the teacher only where its probability is within 44 to 56 %.
#
# One split, two recipes
# ----------------------
#
# Each point is a training row. The hard label wins where a curve has crossed zero: the shaded
# quadrants.

(X_teacher, y_teacher), (X_student, y_student), _ = split(0)
logits = LogisticRegression().fit(X_teacher, y_teacher).decision_function(X_student)
shown = np.abs(logits) < 8  # the rows further out are all right, and lie on the curves
figure, axes = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
for ax, recipe in zip(axes, ("0.9 T² kl + 0.1 ce", "0.9 kl + 0.1 ce"), strict=True):
    soft_ratio = SOFT_RATIOS[list(RECIPES).index(recipe)]
    EffectiveLogitsDisplay.from_predictions(
        logits[shown], y_student[shown], soft_ratio=soft_ratio, temperature=T, ax=ax
    )
    ax.set_title(f"{recipe}, T = {T:g}\n{ax.get_title()}", fontsize="medium")
plt.show()
