"""
What can be guaranteed about a student?
=======================================

Three upper bounds on the transfer risk, the share of rows on which student and teacher disagree.

* Theorem 1 of Ji and Zhu bounds it by an angle. In practice it says little: in the paper's own
  Fig. 2 it is 1 at every number of training rows.
* The *power-function bound* costs the same and knows how much of each row's features the training
  rows span. It needs the norm ‖w\\ :sub:`*`\\ ‖ of the teacher, which is exact where the teacher is
  a machine of the student's kernel, such as :class:`~sklearn_kd.NTKTeacher`.
* The *exact binomial bound* counts disagreements on held-out rows. It always holds, with the stated
  confidence, and needs nothing but those rows.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.datasets import make_gaussian_mixture_logits
from sklearn_kd.inspection import TransferRiskDisplay

SIZES = [32, 64, 128, 256, 512, 1024, 2048]


def distil(X, y, n_teacher, n_student, stopping_time):
    """Train a teacher, and its student of soft labels alone on other rows."""
    teacher = NTKTeacher(stopping_time=stopping_time).fit(X[:n_teacher], y[:n_teacher])
    student = LinearizedKDStudent(FrozenEstimator(teacher), soft_ratio=1.0)
    rows = slice(n_teacher, n_teacher + n_student)
    return teacher, student.fit(X[rows], y[rows])


def draw(ax, title, teacher, student, X, sizes):
    """Draw the risk and its bounds, and print them at the last size."""
    display = TransferRiskDisplay.from_estimator(
        student, X, sizes=sizes, oracle_norm=teacher.weight_change_norm_, ax=ax
    )
    ax.set_title(title)
    print(f"{title}: bounds on the transfer risk at n = {sizes[-1]}, {len(X)} held-out rows")
    print(f"  {'measured':26} {display.transfer_risk[0, 0, -1]:.4f}")
    print(f"  {'binomial bound, 95 %':26} {display.upper_bound[0]:.4f}")
    print(f"  {'power-function bound':26} {display.power_function_bound[-1]:.4f}")
    print(f"  {'Theorem 1':26} {display.theorem_bound[-1]:.4f}")


figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")

# A mixture of 20 Gaussian bumps in the plane: a teacher of 1000 rows, a student of up to 2048.
task = make_gaussian_mixture_logits(5048, random_state=3)
teacher, student = distil(task.X, task.y, 1000, 2048, stopping_time=1000.0)
draw(axes[0], "Gaussian mixture, d = 2", teacher, student, task.X[3048:], SIZES)

# Breast cancer: 30 features, and two hundred rows for the student.
X, y = load_breast_cancer(return_X_y=True)
order = np.random.default_rng(0).permutation(len(y))
X, y = scale(X)[order], y[order]
teacher, student = distil(X, y, 150, 200, stopping_time=100.0)
draw(axes[1], "breast cancer, d = 30", teacher, student, X[350:], [8, 16, 32, 64, 128, 200])

# %%
# The power-function bound is of use where Theorem 1 says little. It is as good as the
# teacher is smooth: the longer a teacher is trained, the longer its weights, and the looser the
# bound. The two teachers above stopped at 1000 and 100.

print("power-function bound by the teacher's stopping time")
for stopping_time in (100.0, 1000.0, 10_000.0):
    bounds = []
    for rows, labels, n_teacher, n_student in (
        (task.X, task.y, 1000, 2048),
        (X, y, 150, 200),
    ):
        teacher, student = distil(rows, labels, n_teacher, n_student, stopping_time)
        display = TransferRiskDisplay.from_estimator(
            student,
            rows[n_teacher + n_student :],
            sizes=[1, n_student],
            oracle_norm=teacher.weight_change_norm_,
        )
        plt.close(display.figure_)
        bounds.append(display.power_function_bound[-1])
    print(f"  {stopping_time:6.0f}   mixture {bounds[0]:.3f}   breast cancer {bounds[1]:.3f}")

# %%
# A bound on the held-out rows at hand is not yet one on rows to come; the binomial bound is.

plt.show()
