"""
A plan: which checkpoint, which recipe, how many labels?
========================================================

A network was trained on 600 digits, of which a fifth have a wrong label, and kept after a few
epochs and at the end. A smaller network is to be distilled from it on 500 other rows, whose labels
are wrong as often; 300 more have none. One call says what to do, and how sure that is. Then the
small network is trained by the plan, and by what people do without one: the last checkpoint,
ρ = 0.9, T = 4.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier
from torch import nn

from sklearn_kd import DistillationPlan, TorchStudent

X, y = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
order = rng.permutation(len(X))
X, y = X[order] / 16, y[order]
is_wrong = rng.random(len(y)) < 0.2
labels = np.where(is_wrong, rng.integers(0, 10, len(y)), y)
of_teacher, train, test = slice(0, 600), slice(600, 1400), slice(1400, None)
labels[1100:1400] = -1  # rows without a label


def checkpoint(n_epochs):
    network = MLPClassifier((256,), max_iter=n_epochs, random_state=0, n_iter_no_change=1000)
    return FrozenEstimator(network.fit(X[of_teacher], labels[of_teacher]))


checkpoints = {f"epoch {n}": checkpoint(n) for n in (5, 20, 200)}
for name, teacher in checkpoints.items():
    print(f"{name}: right on {teacher.score(X[test], y[test]):.3f} of the test rows")

# %%
# The plan
# --------
# The student is a network of 32 units, with how it is trained.


def network(n_features, n_classes):
    return nn.Sequential(nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, n_classes))


student = TorchStudent(
    network,
    lr=0.1,
    optimizer_params={"momentum": 0.9},
    batch_size=64,
    max_epochs=40,
    random_state=0,
)
plan = DistillationPlan(
    student, checkpoints, soft_ratios=(0.1, 0.5, 0.9, 1.0), temperatures=(1.0, 4.0), random_state=0
)
plan.fit(X[train], labels[train])
print(plan.summary())

# %%
# In pictures
# -----------
# Which cells are as good as the best:

plan.plot("recipe")
plt.show()

# %%
# All that there are; ``plan.to_html("plan.html")`` writes them with all sentences and tables as one
# page.

plan.plot()
plt.show()

# %%
# And trained
# -----------
# The plan's student and the habitual one, with three seeds.


def accuracy(student, seed):
    student.set_params(random_state=seed).fit(X[train], labels[train])
    return student.score(X[test], y[test])


habit = plan.student_().set_params(
    teacher=checkpoints["epoch 200"], soft_ratio=0.9, temperature=4.0
)
for name, one in {"by the plan": plan.student_(), "by habit": habit}.items():
    scores = [accuracy(one, seed) for seed in range(3)]
    print(f"{name}: {np.mean(scores):.3f} ± {np.std(scores, ddof=1) / 3**0.5:.3f}")
