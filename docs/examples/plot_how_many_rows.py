"""
How many rows are enough?
=========================

The student at every training-set size, from one factorization per order of the rows: its error, its
transfer risk and its data inefficiency. Then a check of how far the curve can be trusted beyond
its end. Digits (ten classes), distilled from a small neural network.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.inspection import DataInefficiencyDisplay, soft_ratio_color
from sklearn_kd.metrics import binomial_upper_bound

SIZES = [25, 50, 100, 200, 400, 800]
CANDIDATES = {"nearly hard labels, ρ = 0.01": 0.01, "half and half, ρ = 0.5": 0.5, "ρ = 1": 1.0}

X, y = load_digits(return_X_y=True)
X_teacher, X_rest, y_teacher, y_rest = train_test_split(
    X / 16, y, train_size=600, stratify=y, random_state=0
)
X_student, X_test, y_student, y_test = train_test_split(
    X_rest, y_rest, train_size=800, stratify=y_rest, random_state=0
)
teacher = MLPClassifier(max_iter=500, random_state=0).fit(X_teacher, y_teacher)
student = LinearizedKDStudent(FrozenEstimator(teacher)).fit(X_student, y_student)

# %%
# Error against the number of rows
# --------------------------------

path = student.prefix_path(
    X_test,
    y=y_test,
    sizes=SIZES,
    n_permutations=10,
    param_grid={"soft_ratio": list(CANDIDATES.values())},
    random_state=0,
)
print(f"the teacher is wrong on {100 * (1 - teacher.score(X_test, y_test)):.1f} % of the test rows")
print(f"\nstudent's error in %{'rows:':>14}" + "".join(f"{size:8}" for size in SIZES))
for name, error in zip(CANDIDATES, path.error, strict=True):
    print(f"{name:34}" + "".join(f"{100 * value:8.1f}" for value in error.mean(axis=0)))

# %%
# From 400 to 800 rows the students gain 0.3 to 0.5 points: one or two test rows of 397. How sure is
# the last number? The exact 95 % upper bound of an error of k in 397 test rows:

errors = np.rint(path.error[:, 0, -1] * len(y_test)).astype(int)
for name, k in zip(CANDIDATES, errors, strict=True):
    bound = 100 * binomial_upper_bound(k, len(y_test))
    print(f"{name:34}{k:3} errors in {len(y_test)}: at most {bound:.1f} %")

# %%
# Data inefficiency
# -----------------
#
# 𝓘(n) tells how much the student's weights still grow with the rows: its norm grows as n to the
# power 𝓘. It needs no test rows. For a ruler, a second student gets the same teacher's logits in
# shuffled order, a teacher that knows nothing about the rows.

shuffled = np.random.default_rng(0).permutation(len(y_student))
lost = LinearizedKDStudent(soft_ratio=1.0).fit(
    X_student, y_student, teacher_logits=student.teacher_logits_[shuffled]
)
ruler = lost.prefix_path(sizes=SIZES, n_permutations=10, random_state=0)
print(f"\ndata inefficiency{'rows:':>17}" + "".join(f"{size:8}" for size in SIZES))
for name, values in zip(
    [*CANDIDATES, "ρ = 1, shuffled teacher"],
    [*path.smoothed_data_inefficiency, ruler.smoothed_data_inefficiency],
    strict=True,
):
    print(f"{name:34}" + "".join(f"{value:8.2f}" for value in values))

# %%
# The shuffled teacher stays above 0.59 whatever the number of rows: every row is news. The real one
# has come down to 0.09 at 800 rows with soft labels alone. Nearly hard labels stay above 0.2.
#
# Beyond the last row
# -------------------
#
# Can the curve be extended? Fit a power law to the errors at 50, 100 and 200 rows, and look at what
# it says about 400 and 800, where the answer is known.

print(f"\nerror in %{'':29}400 rows              800 rows")
print(f"{'':34}" + 2 * "extended  measured    ")
for name, error in zip(CANDIDATES, 100 * path.error.mean(axis=1), strict=True):
    slope, intercept = np.polyfit(np.log(SIZES[1:4]), np.log(error[1:4]), 1)
    extended = np.exp(intercept + slope * np.log(SIZES[4:]))
    pairs = zip(extended, error[4:], strict=True)
    print(f"{name:34}" + "".join(f"{law:8.1f}{measured:10.1f}    " for law, measured in pairs))

# %%
# The law promises too much each time: 0.1 to 0.4 points at twice the rows, 0.3 to 0.8 at four
# times, and more with soft labels. It does not know that a student levels off where its teacher is
# wrong. Extend a curve by a factor of two at most, and with ρ = 1 not below its teacher's error.


figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
for (name, ratio), error in zip(CANDIDATES.items(), 100 * path.error, strict=True):
    bar = error.std(axis=0) / np.sqrt(len(error))
    style = {"color": soft_ratio_color(ratio), "label": name}
    left.errorbar(SIZES, error.mean(axis=0), bar, marker="o", capsize=2, **style)
left.axhline(
    100 * (1 - teacher.score(X_test, y_test)), color="0.4", ls="dotted", label="the teacher"
)
left.set(xlabel="training rows", ylabel="error on 397 test rows (%)", xscale="log", yscale="log")
left.set_xticks(SIZES, SIZES)
left.set_xticks([], minor=True)
left.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
left.set_yticks([], minor=True)
left.legend()
DataInefficiencyDisplay.from_estimator(
    student,
    sizes=range(25, 801, 25),
    n_permutations=10,
    param_grid={"soft_ratio": list(CANDIDATES.values())},
    random_state=0,
    ax=right,
)
right.set_xticks(SIZES, SIZES)
right.set_xticks([], minor=True)
plt.show()
