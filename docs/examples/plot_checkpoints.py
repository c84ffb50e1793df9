"""
Which checkpoint of the teacher?
================================

One training run gives many teachers: distil each of them, and look at the student. Here on
scikit-learn's digits (ten classes) with two teachers, the wide network of
:class:`~sklearn_kd.NTKTeacher` and gradient-boosted trees. Averages over five random splits.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.inspection import soft_ratio_color

SOFT_RATIOS = [0.01, 0.5, 0.9, 1.0]
LABELS = ["ρ = 0.01, nearly hard labels", "ρ = 0.5", "ρ = 0.9", "ρ = 1, soft labels only"]
SIZES = [100, 600]
N_SPLITS = 5

X, y = load_digits(return_X_y=True)
X = X / 16

# %%
# The logits of every checkpoint
# ------------------------------
#
# Both have `staged_decision_function`. For any other network, save the logits on the student's rows
# at each checkpoint; nothing else of the teacher is needed.


def ntk_checkpoints(X_teacher, y_teacher, *others):
    """Yield (stopping time, logits on each of the others)."""
    times = [1e1, 1e2, 1e3, 1e4, 1e5]
    teacher = NTKTeacher(stopping_time=times).fit(X_teacher, y_teacher)
    yield from zip(times, *map(teacher.staged_decision_function, others), strict=True)


def boosting_checkpoints(X_teacher, y_teacher, *others):
    """Yield (number of boosting rounds, logits on each of the others)."""
    rounds = [1, 3, 10, 30, 100]
    teacher = HistGradientBoostingClassifier(max_iter=rounds[-1], random_state=0)
    teacher.fit(X_teacher, y_teacher)
    stages = zip(*map(teacher.staged_decision_function, others), strict=True)
    for index, logits in enumerate(stages, start=1):
        if index in rounds:
            yield index, *logits


# %%
# A student of each
# -----------------


def students(checkpoints, seed):
    """Return the checkpoints and, for each, the teacher's error and the students' path."""
    X_teacher, X_rest, y_teacher, y_rest = train_test_split(
        X, y, train_size=600, stratify=y, random_state=seed
    )
    X_student, X_test, y_student, y_test = train_test_split(
        X_rest, y_rest, train_size=600, stratify=y_rest, random_state=seed
    )
    stages, teacher_errors, paths = [], [], []
    for stage, logits, test_logits in checkpoints(X_teacher, y_teacher, X_student, X_test):
        student = LinearizedKDStudent().fit(X_student, y_student, teacher_logits=logits)
        stages.append(stage)
        teacher_errors.append(np.mean(test_logits.argmax(axis=1) != y_test))
        paths.append(
            student.prefix_path(
                X_test,
                teacher_logits=test_logits,
                y=y_test,
                sizes=SIZES,
                n_permutations=2,
                param_grid={"soft_ratio": SOFT_RATIOS},
                random_state=seed,
            )
        )
    return stages, teacher_errors, paths


figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey="row")
for column, (name, unit, checkpoints) in zip(
    axes.T,
    [
        ("wide network", "stopping time", ntk_checkpoints),
        ("boosted trees", "rounds", boosting_checkpoints),
    ],
    strict=True,
):
    runs = [students(checkpoints, seed) for seed in range(N_SPLITS)]
    stages = runs[0][0]
    teacher_error = 100 * np.array([run[1] for run in runs])  # (splits, stages)
    # (splits, stages, soft ratios, sizes), the mean over orders of the rows
    error = 100 * np.array([[path.error.mean(axis=1) for path in run[2]] for run in runs])
    risk = 100 * np.array([[path.transfer_risk.mean(axis=1) for path in run[2]] for run in runs])
    inefficiency = np.array([[p.smoothed_data_inefficiency for p in run[2]] for run in runs])

    print(f"\n{name}: error in %, mean over {N_SPLITS} splits")
    print(f"{'':24}" + "".join(f"{f'student, {size} rows':>28}" for size in SIZES))
    ratios = "".join(f"{f'ρ={ratio:g}':>7}" for ratio in SOFT_RATIOS)
    print(f"{unit:>15}{'teacher':>9}{ratios}{ratios}{'R, ρ=1':>9}{'𝓘, ρ=1':>8}")
    for k, stage in enumerate(stages):
        cells = error.mean(axis=0)[k].T.ravel()
        print(
            f"{stage:15g}{teacher_error[:, k].mean():9.1f}"
            + "".join(f"{cell:7.1f}" for cell in cells)
            + f"{risk[:, k, -1, -1].mean():9.1f}{inefficiency[:, k, -1, -1].mean():8.2f}"
        )
    print(
        "largest standard error over splits: "
        f"{error.std(axis=0, ddof=1).max() / np.sqrt(N_SPLITS):.2f}"
    )

    for row, size in enumerate(SIZES):
        ax = column[row]
        ax.plot(stages, teacher_error.mean(axis=0), color="0.4", ls="dotted", label="the teacher")
        for i, (ratio, label) in enumerate(zip(SOFT_RATIOS, LABELS, strict=True)):
            values = error[:, :, i, row]
            bar = values.std(axis=0, ddof=1) / np.sqrt(N_SPLITS)
            style = {"color": soft_ratio_color(ratio), "label": label}
            ax.errorbar(stages, values.mean(axis=0), bar, marker="o", capsize=2, **style)
        ax.set(xscale="log", yscale="log", xlabel=f"checkpoint: {unit}")
        ax.set(ylabel="test error (%)", title=f"{name}, student of {size} rows")
        ax.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
        ax.set_xticks(stages, [f"{stage:g}" for stage in stages])
        ax.minorticks_off()
axes[0, 0].legend()
plt.show()

# %%
# * **Soft labels alone: the last checkpoint.** At ρ = 1 the student copies its teacher, so a better
#   teacher makes a better student, with 100 rows and with 600.
# * **Few rows: the last checkpoint too.** With 100 rows it is best at every ρ, and the soft labels
#   are worth having: 4.8 % at ρ = 0.5 after the longest training, against 8.5 % after the shortest.
# * **Many rows and some hard labels: an early one, or none.** With 600 rows and ρ = 0.5 or 0.9 the
#   early checkpoints win. They are hardly sure of anything, so the hard labels decide, and the
#   student is as good as with nearly hard labels (1.4 %), not better. The late checkpoints are sure
#   of their errors too.
# * **R and 𝓘 are not the error.** The first checkpoints of the wide network are the easiest to
#   copy, R below 1 % and 𝓘 = 0.01, and make the worst students at ρ = 1. 𝓘 rises with the stopping
#   time of the wide network, as in the paper's Fig. 4. It falls with the rounds of the trees.
