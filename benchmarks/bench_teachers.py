"""Twenty kinds of scikit-learn teachers, unfitted, as they come and calibrated.

For each, on digits and on breast cancer: the test accuracy of the teacher, of the student at ρ = 1
and T = 1, and of the student at the best of nine (ρ, T), which the test rows choose; all this for
the teacher itself and for CalibratedClassifierCV(teacher, cv=3). A teacher without predict_proba is
refused as it comes. Prints a table and writes JSON. Means over draws of the rows.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent

LOGISTIC = LogisticRegression(max_iter=1000)
TEACHERS = {
    "LogisticRegression": LOGISTIC,
    "OneVsRest(LogisticRegression)": OneVsRestClassifier(LOGISTIC),
    "SGD, log loss": SGDClassifier(loss="log_loss", random_state=0),
    "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "QuadraticDiscriminantAnalysis": QuadraticDiscriminantAnalysis(
        solver="eigen", shrinkage="auto"
    ),
    "GaussianNB": GaussianNB(),
    "KNeighbors": KNeighborsClassifier(),
    "DecisionTree": DecisionTreeClassifier(random_state=0),
    "RandomForest": RandomForestClassifier(random_state=0),
    "ExtraTrees": ExtraTreesClassifier(random_state=0),
    "AdaBoost": AdaBoostClassifier(DecisionTreeClassifier(max_depth=3), random_state=0),
    "GradientBoosting": GradientBoostingClassifier(n_estimators=30, random_state=0),
    "HistGradientBoosting": HistGradientBoostingClassifier(max_iter=30, random_state=0),
    "MLP": MLPClassifier(random_state=0),
    "GaussianProcess": GaussianProcessClassifier(RBF(3.0), optimizer=None),
    "Stacking": StackingClassifier([("n", GaussianNB()), ("l", LOGISTIC)], cv=3),
    "SVC": SVC(),
    "LinearSVC": LinearSVC(),
    "RidgeClassifier": RidgeClassifier(),
    "Perceptron": Perceptron(random_state=0),
}
DATA = {"digits": load_digits, "breast cancer": load_breast_cancer}
CELLS = [(soft_ratio, t) for soft_ratio in (0.5, 0.9, 1.0) for t in (1.0, 2.0, 5.0)]


def calibrated(teacher):
    """Return the teacher, calibrated: a stack in its last layer, as scikit-learn takes it."""
    if isinstance(teacher, StackingClassifier):
        return clone(teacher).set_params(final_estimator=CalibratedClassifierCV(LOGISTIC, cv=3))
    return CalibratedClassifierCV(teacher, cv=3)


def accuracies(teacher, X, y, X_new, y_new):
    """Return the accuracy of the teacher, and of the student in each cell; NaN if refused."""
    student = LinearizedKDStudent(clone(teacher), soft_ratio=1.0, temperature=1.0)
    try:
        student.fit(X, y)
    except ValueError as error:
        if "teacher_method" not in str(error):
            raise
        own = clone(teacher).fit(X, y).score(X_new, y_new)
        return own, np.full(len(CELLS), np.nan), "refused"
    found = []
    for soft_ratio, t in CELLS:
        cell = LinearizedKDStudent(soft_ratio=soft_ratio, temperature=t)
        cell.fit(X, y, teacher_logits=student.teacher_logits_)
        found.append(cell.score(X_new, y_new))
    method = student.fit_report_.teacher_method
    return student.teacher_.score(X_new, y_new), np.array(found), method


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300, help="training rows")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("bench_teachers.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    start = time.perf_counter()
    for data, load in DATA.items():
        X, y = load(return_X_y=True)
        print(f"\n{data}, {arguments.rows} rows; accuracies in percent, {arguments.draws} draws")
        print(f"{'':>30} |        as it comes          |         calibrated")
        print(f"{'':>30} | teacher ρ=T=1  best          | teacher ρ=T=1  best")
        for name, teacher in TEACHERS.items():
            row = {}
            for kind, one in (
                ("raw", teacher),
                ("calibrated", calibrated(teacher)),
            ):
                draws = []
                for seed in range(arguments.draws):
                    order = np.random.default_rng(seed).permutation(len(X))
                    train, test = order[: arguments.rows], order[arguments.rows :]
                    scaler = StandardScaler().fit(X[train])
                    draws.append(
                        accuracies(
                            one,
                            scaler.transform(X[train]),
                            y[train],
                            scaler.transform(X[test]),
                            y[test],
                        )
                    )
                cells = np.mean([found for _, found, _ in draws], axis=0)
                best = int(np.argmax(cells))
                row[kind] = {
                    "teacher": float(np.mean([own for own, _, _ in draws])),
                    "student_rho_1_T_1": float(cells[CELLS.index((1.0, 1.0))]),
                    "student_best": float(cells[best]),
                    "best_cell": CELLS[best],
                    "method": draws[0][2],
                    "cells": cells.tolist(),
                }
            results[f"{data}, {name}"] = row
            print(f"{name:>30} |" + " |".join(line_of(row[kind]) for kind in row), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")
    lost = {
        name: row["calibrated"]["student_best"] - row["raw"]["student_best"]
        for name, row in results.items()
        if row["raw"]["method"] != "refused"
    }
    worst = max(lost, key=lost.get)
    print(f"Most lost to the calibrated self at the best (ρ, T): {100 * lost[worst]:.1f} ({worst})")
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def line_of(found):
    if found["method"] == "refused":
        return f"  {100 * found['teacher']:5.1f}  refused{'':14}"
    soft_ratio, t = found["best_cell"]
    return (
        f"  {100 * found['teacher']:5.1f}  {100 * found['student_rho_1_T_1']:5.1f}  "
        f"{100 * found['student_best']:5.1f} (ρ={soft_ratio:g}, T={t:g}) "
    )


if __name__ == "__main__":
    main()
