"""
What should I train? A first plan
=================================

A teacher of 300 digits, 500 other labelled rows, and a small network that is to be trained on both.
One call says with which soft ratio and temperature. Then the network is trained with that recipe,
and with three others.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import shuffle
from torch import nn

from sklearn_kd import DistillationPlan, TorchStudent
from sklearn_kd.inspection import soft_ratio_color

X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
X = X / 16
of_teacher, train, test = slice(0, 300), slice(300, 800), slice(800, None)
teacher = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X[of_teacher], y[of_teacher]))

# %%
# The plan
# --------

plan = DistillationPlan(teachers=teacher, random_state=0).fit(X[train], y[train])
print(plan.summary())

# %%
# The networks
# ------------
# 128 hidden units, trained by stochastic gradient descent with three seeds. The loss is the usual
# one, in which the soft term is multiplied by T².


def network(n_features, n_classes):
    return nn.Sequential(nn.Linear(n_features, 128), nn.ReLU(), nn.Linear(128, n_classes))


student = TorchStudent(
    network,
    teacher,
    temperature_scaling="squared",
    lr=0.1,
    optimizer_params={"momentum": 0.9},
    batch_size=64,
    max_epochs=40,
)
recipes = {
    "the plan": (plan.recipe_.soft_ratio, plan.recipe_.temperature),
    "half and half": (0.5, 4.0),
    "mostly soft": (0.9, 4.0),
    "soft labels only": (1.0, 4.0),
}
accuracy = {}
for name, (soft_ratio, temperature) in recipes.items():
    accuracy[name] = []
    for seed in range(3):
        student.set_params(soft_ratio=soft_ratio, temperature=temperature, random_state=seed)
        accuracy[name].append(100 * student.fit(X[train], y[train]).score(X[test], y[test]))
    print(f"{name:17} {np.mean(accuracy[name]):.1f} % on the test rows")
print(f"{'the teacher':17} {100 * teacher.score(X[test], y[test]):.1f} %")

# %%
# The plan beside the networks
# ----------------------------

figure, axes = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[3, 2], layout="constrained")
plan.plot("recipe", ax=axes[0])
axes[0].set_title(
    "The plan, before any network: held-out accuracy\n★ best; framed: as good, at 90 %"
)
for position, (name, values) in enumerate(accuracy.items()):
    colour = soft_ratio_color(recipes[name][0])
    axes[1].plot(values, np.full(3, position), "o", alpha=0.7, color=colour)
axes[1].axvline(100 * teacher.score(X[test], y[test]), color="0.5", ls="--", label="the teacher")
axes[1].set_yticks(range(4), [f"{n}\nρ = {r:g}, T = {t:g}" for n, (r, t) in recipes.items()])
axes[1].set(xlabel="accuracy on 997 test rows (%)", ylim=(3.5, -0.5))
axes[1].set_title("Networks, trained with four recipes")
axes[1].legend(loc="lower right")
plt.show()
