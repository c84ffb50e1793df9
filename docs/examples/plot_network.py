"""
From a teacher to a trained network
===================================

A teacher, a torch network, 600 rows of which a fifth have a wrong label: with which soft ratio and
temperature should the network be trained? Three short pilots and one run of it tell the search what
kind of network it stands for, and the search answers from the training rows and labels alone. Then
the network is trained with that recipe, and with two that people use by habit.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_kd import LinearizedKDStudentCV, TorchStudent
from sklearn_kd.inspection import SelectionDisplay, soft_ratio_color

X, digit = load_digits(return_X_y=True)
X, y = X / 16, digit % 2
rng = np.random.default_rng(0)
labels = np.where(rng.random(len(y)) < 0.2, 1 - y, y)
train, test = slice(200, 800), slice(800, None)
teacher = FrozenEstimator(LogisticRegression().fit(X[:200], y[:200]))
print(f"the teacher, of 200 other rows: {teacher.score(X[test], y[test]):.3f}")

# %%
# The network, and how it is trained
# ----------------------------------
# A function builds it, so that each seed has weights of its own. ``temperature_scaling="squared"``
# is the loss with T² that most toolkits have.


def network(n_features):
    return nn.Sequential(
        nn.Linear(n_features, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1)
    )


student = TorchStudent(
    network,
    teacher,
    soft_ratio=0.1,
    temperature_scaling="squared",
    lr=0.1,
    optimizer_params={"momentum": 0.9},
    max_epochs=60,
    random_state=0,
)

# %%
# The search that stands for it
# -----------------------------

search = LinearizedKDStudentCV.for_network(
    student, X[train], labels[train], soft_ratios=[0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0]
)
search.fit(X[train], labels[train])
print(search.verdict_)

# %%
# The network, trained with three recipes
# ---------------------------------------

chosen = search.best_params_["soft_ratio"], search.best_params_["temperature"]
recipes = {"chosen": chosen, "mostly soft": (0.9, 4.0), "half and half": (0.5, 4.0)}
scores = {}
for name, (soft_ratio, temperature) in recipes.items():
    scores[name] = []
    for seed in range(5):
        student.set_params(soft_ratio=soft_ratio, temperature=temperature, random_state=seed)
        trained = student.fit(X[train], labels[train])
        scores[name].append(trained.score(X[test], y[test]))
    error = np.std(scores[name], ddof=1) / np.sqrt(5)
    print(f"{name:15} {np.mean(scores[name]):.3f} ± {error:.3f}")

# %%
# Both in a picture
# -----------------

figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), width_ratios=[3, 2], layout="constrained")
SelectionDisplay.from_estimator(search, ax=axes[0])
axes[0].set_title("the search: accuracy on held-out rows, a fifth of them wrong")
for position, (name, values) in enumerate(scores.items()):
    colour = soft_ratio_color(recipes[name][0])
    axes[1].plot(values, np.full(5, position), "o", alpha=0.6, color=colour)
    axes[1].plot(np.mean(values), position, "k|", ms=20)
axes[1].axvline(teacher.score(X[test], y[test]), color="0.5", ls="--", label="teacher")
axes[1].set_yticks(range(3), [f"{n}\nρ = {r:g}, T = {t:g}" for n, (r, t) in recipes.items()])
axes[1].set(xlabel="accuracy on test rows with true labels", ylim=(2.5, -0.5))
axes[1].set_title("trained networks, five seeds")
axes[1].legend()
plt.show()
