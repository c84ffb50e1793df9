"""Are the sentences of a plan true, where the truth is known?

Rows, labels and teachers are drawn from laws in which the answer is known or can be measured: a
plan is made of each draw, and what it says is so is held against the accuracies of the same cells,
teachers, students and stopping times on rows with labels of the true law, on average over the
draws.
A sentence is *confident* if the plan says that the rows tell it at 90 %, and *wrong* if the mean
over the draws says otherwise: no more than 10 % of the draws may hold a wrong confident sentence.

Also counted: how often a confident sentence was there at all. A plan that says nothing is never
wrong.
"""

import argparse
import json
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.special import expit

from sklearn_kd import DistillationPlan, LinearizedKDStudentCV
from sklearn_kd.distillation._effective_logits_of_rows import mixed_logits
from sklearn_kd.kernels import NTK

D = 5
GRID = {
    "soft_ratios": (0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0),
    "temperatures": (1.0, 2.0, 4.0),
    "temperature_scaling": "squared",
}


def logit(X):
    """The true log-odds: smooth, with a margin that is small somewhere."""
    return 6 * np.sin(1.5 * X[:, 0]) + 3 * X[:, 1] * X[:, 2]


def scrambled(X, rng):
    """Errors of a teacher that no student can foresee from a few rows: a rough function."""
    weights = rng.normal(size=(D, 3)) * 8
    return np.sin(X @ weights).sum(axis=1)


ALL_TEACHERS = "all teachers"


class Case:
    """A law of rows, labels and teachers; ``labels(X, rng)``, ``teachers(X, y, rng)``."""

    def __init__(self, labels, teachers, truth="sign"):
        self.labels, self.teachers, self.truth = labels, teachers, truth

    def draw(self, n, rng):
        X = rng.normal(size=(n, D))
        y = self.labels(X, rng)
        errors = rng.integers(2**31)
        return X, y, self.teachers(X, y, np.random.default_rng(errors))

    def true_labels(self, X, rng):
        return (logit(X) > 0).astype(int) if self.truth == "sign" else self.labels(X, rng)


def true(X, rng):
    return (logit(X) > 0).astype(int)


def flipped(share):
    return lambda X, rng: np.where(rng.random(len(X)) < share, 1 - true(X, rng), true(X, rng))


def of_law(X, rng):
    return (rng.random(len(X)) < expit(logit(X))).astype(int)


def by_chance(X, rng):
    return rng.integers(2, size=len(X))


def perfect(X, y, rng):
    return {"teacher": logit(X)}


def rough(X, y, rng):
    return {"teacher": logit(X) + 3 * scrambled(X, rng)}


def noisy(size):
    return lambda X, rng: logit(X) + size * rng.normal(size=len(X))


def two_equal(X, y, rng):
    return {"first": noisy(5)(X, rng), "second": noisy(5)(X, rng)}


def good_and_bad(X, y, rng):
    return {"good": noisy(1)(X, rng), "bad": noisy(15)(X, rng)}


def sharp_and_soft(X, y, rng):
    """The more accurate one says which class and nothing else; the other is smooth."""
    return {"sharp": 12 * np.sign(logit(X)), "soft": logit(X) + 1.5 * rng.normal(size=len(X))}


CASES = {
    "labels flipped, teacher perfect": Case(flipped(0.3), perfect),
    "labels true, teacher rough": Case(true, rough),
    "labels true, teacher perfect": Case(true, perfect),
    "labels of the law, teacher perfect": Case(of_law, perfect),
    "labels by chance": Case(by_chance, perfect, truth="law"),
    "two equal teachers": Case(of_law, two_equal),
    "a good and a bad teacher": Case(of_law, good_and_bad),
    "a sharp and a soft teacher": Case(of_law, sharp_and_soft),
}


def one_run(case, n, n_test, seed):
    """Return what a plan says of a draw, and the accuracies on rows of the true law."""
    rng = np.random.default_rng(seed)
    X, y, teachers = case.draw(n, rng)
    students = {"shallow": NTK(depth=1), "deep": NTK(depth=5), "as deep": NTK(depth=5)}
    plan = DistillationPlan(students, n_orders=2, random_state=0, row_factors=(2,), **GRID)
    plan.fit(X, y, teacher_logits=teachers)
    X_new = rng.normal(size=(n_test, D))
    y_new = case.true_labels(X_new, rng)
    z_new = next(iter(case.teachers(X_new, y_new, rng).values()))
    searches = plan.searches_ | {ALL_TEACHERS: plan.teacher_search_}
    new = X_new, y_new
    cells = accuracies(searches, X, y, *new)
    times = accuracies({"": plan.stopping_search_}, X, y, *new, student=plan.search_)[""]
    findings = plan.findings_
    return {
        "claims": {topic: (found.claim, found.is_sure) for topic, found in findings.items()},
        "as_good": findings["student"].values["as_good"],
        "losses": {k: v.is_worse for k, v in findings["recipe"].values["losses"].items()},
        "worse_up_to": findings["hard labels"].values.get("worse_up_to"),
        "teachers_worse": {
            name: loss.is_worse
            for name, loss in findings["teacher"].values.get("losses", {}).items()
        },
        "teacher_right": float(((z_new > 0) == y_new).mean()),
        "n_teachers": len(teachers),
        "cells": cells,
        "times": times,
        "chosen": plan.search_.best_index_,
        "chosen_time": plan.stopping_search_.best_index_,
        "in_set": plan.search_.cv_results_["in_best_set"].tolist(),
        "params": [(p["soft_ratio"], p["temperature"]) for p in plan.search_.cv_results_["params"]],
        "teachers": [
            plan._teachers.named(p.get("teacher_weights"))
            for p in plan.teacher_search_.cv_results_["params"]
        ],
        "error": 1 - plan.search_.best_score_,
    }


def accuracies(searches, X, y, X_new, y_new, student=None):
    """Return the accuracy of every cell of every search on new rows, of students of all rows.

    A search without a student has the teachers of that of another search, ``student``.
    """
    found = {}
    for name, search in searches.items():
        members = (student or search).best_estimator_._member_logits()
        params = search.cv_results_["params"]
        again = LinearizedKDStudentCV(**search.get_params(deep=False))
        again.set_params(cv=None, refit=False, teacher=None, teacher_weights=None)
        found[name] = np.zeros(len(params))
        # A mixture has other logits at each temperature.
        for weights, T in {(one.get("teacher_weights"), one["temperature"]) for one in params}:
            z_t = mixed_logits(members, {"teacher_weights": weights, "temperature": T}).numpy()
            again.set_params(temperatures=[T])
            again.fit(X, y, teacher_logits=z_t, X_val=X_new, y_val=y_new)
            some = [
                index
                for index, one in enumerate(params)
                if one.get("teacher_weights") == weights and one["temperature"] == T
            ]
            found[name][some] = again.cv_results_["mean_test_score"]
    return {name: values.tolist() for name, values in found.items()}


def wrong_sentences(run, mean):
    """Return the topics on which a plan is confident and wrong, given the mean accuracies.

    Stopping times are those of the recipe of each draw, and so are their accuracies.
    """
    chosen_student = run["claims"]["student"][0]
    cells, times = mean["cells"][chosen_student], np.array(run["times"])
    rho = np.array([p[0] for p in run["params"]])
    teacher, with_each = np.array(run["teachers"]), mean["cells"][ALL_TEACHERS]
    claim, wrong = run["claims"]["hard labels"][0], []
    with_hard, without = cells[rho < 1].max(), cells[rho == 1].max()
    if claim == "help" and with_hard <= without:
        wrong.append("hard labels")
    if claim == "hurt" and with_hard >= without:
        wrong.append("hard labels")
    if claim == "hurt below" and cells[rho <= run["worse_up_to"]].max() >= cells.max():
        wrong.append("hard labels")
    for name, is_worse in run["losses"].items():
        of_cells = rho == 1
        if "habit" in name:
            of_cells = rho == (0.9 if "0.9" in name else 0.5)
            of_cells &= np.array([p[1] == 4 for p in run["params"]])
        if is_worse and cells[of_cells].max() >= cells.max():
            wrong.append("recipe")
    for name, is_worse in run["teachers_worse"].items():
        if is_worse and with_each[teacher == name].max() >= with_each.max():
            wrong.append("teacher")
    learnt, known = cells[run["chosen"]], mean["teacher"]
    told = run["claims"]["teacher"][0]
    if run["n_teachers"] == 1 and told == "better student" and learnt <= known:
        wrong.append("teacher")
    if run["n_teachers"] == 1 and told == "better teacher" and learnt >= known:
        wrong.append("teacher")
    by_student = {name: max(v) for name, v in mean["cells"].items() if name != ALL_TEACHERS}
    for name, value in by_student.items():
        if name not in (chosen_student, *run["as_good"]) and value >= by_student[chosen_student]:
            wrong.append("student")
    if run["claims"]["stopping"][0] == "early" and times[:-1].max() <= times[-1]:
        wrong.append("stopping")
    if not run["in_set"][int(cells.argmax())]:
        wrong.append("best set")
    return wrong


def confident_sentences(run):
    told = {
        "hard labels": run["claims"]["hard labels"][0] in ("help", "hurt", "hurt below"),
        "recipe": any(run["losses"].values()),
        "teacher": any(run["teachers_worse"].values())
        or (run["n_teachers"] == 1 and run["claims"]["teacher"][1]),
        "student": len(run["as_good"]) < 2,
        "stopping": run["claims"]["stopping"][0] == "early",
    }
    return [topic for topic, is_told in told.items() if is_told]


def mean_over(runs):
    """Return the mean accuracies of every cell, by student, and of the first teacher."""
    names = runs[0]["cells"]
    return {
        "cells": {name: np.mean([run["cells"][name] for run in runs], axis=0) for name in names},
        "teacher": np.mean([run["teacher_right"] for run in runs]),
    }


TOPICS = ("hard labels", "recipe", "teacher", "student", "stopping")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200, help="draws of every case")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--fresh", type=int, default=2000, help="fresh rows for the truth")
    parser.add_argument("--only", default="", help="part of the names of the cases to take")
    parser.add_argument("--json", type=Path, default=Path("plan_sentences.json"))
    arguments = parser.parse_args()
    results = {}
    print(f"{'wrong of confident sentences':36}" + "".join(f"{topic:>14}" for topic in TOPICS))
    for name, case in CASES.items():
        if arguments.only not in name:
            continue
        runs = []
        for seed in range(arguments.runs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runs.append(one_run(case, arguments.rows, arguments.fresh, seed))
        mean, wrong, confident = mean_over(runs), defaultdict(int), defaultdict(int)
        for run in runs:
            for topic in set(wrong_sentences(run, mean)):
                wrong[topic] += 1
            for topic in confident_sentences(run):
                confident[topic] += 1
        results[name] = {"wrong": wrong, "confident": confident, "runs": len(runs)}
        cells = (f"{wrong[topic]} of {confident[topic]}" for topic in TOPICS)
        outside = f"   best cell not in the set: {wrong['best set']}"
        print(f"{name:36}" + "".join(f"{cell:>14}" for cell in cells) + outside, flush=True)
    arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
