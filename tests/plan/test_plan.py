"""`DistillationPlan`: its answers beside those of the objects that it is made of."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from small_plans import GRID
from torch import nn

from sklearn_kd import DistillationPlan, LinearizedKDStudent, LinearizedKDStudentCV, TorchStudent
from sklearn_kd.distillation import Recipe
from sklearn_kd.kernels import NTK
from sklearn_kd.plan import _plan

TOPICS = [
    "recipe",
    "hard labels",
    "teacher",
    "student",
    "rows",
    "stopping",
    "labels worth checking",
    "trust",
]


def network(n_features, n_classes):
    return nn.Sequential(nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, 1))


def test_the_search_is_leave_one_out_over_the_grid(plan, digits):
    X, y, teacher = digits
    search = LinearizedKDStudentCV(
        teacher,
        soft_ratios=GRID["soft_ratios"],
        temperatures=GRID["temperatures"],
        temperature_scaling="squared",
    ).fit(X, y)
    best = search.best_params_
    assert plan.recipe_ == Recipe(
        best["soft_ratio"], best["temperature"], temperature_scaling="squared"
    )
    assert plan.search_.best_score_ == search.best_score_
    assert plan.findings_["recipe"].values["accuracy"] == pytest.approx(search.best_score_)


def test_every_topic_has_a_paragraph(plan):
    assert list(plan.findings_) == TOPICS
    summary = plan.summary(width=60)
    for topic, finding in plan.findings_.items():
        assert f"{topic.capitalize()}: " in summary
        assert finding.sentences
        assert all(sentence.endswith(".") for sentence in finding.sentences)
    assert max(map(len, summary.splitlines())) <= 60


def test_equal_seeds_give_equal_plans(plan, digits):
    X, y, teacher = digits
    again = DistillationPlan(teachers=teacher, **GRID).fit(X, y)
    assert again.summary() == plan.summary()


def test_the_student_is_unfitted_and_has_the_recipe(plan, digits):
    X, y, teacher = digits
    student = plan.student_()
    assert isinstance(student, LinearizedKDStudent)
    assert not hasattr(student, "classes_")
    assert student.teacher is teacher
    assert Recipe(
        student.soft_ratio, student.temperature, temperature_scaling=student.temperature_scaling
    ) == (plan.recipe_)
    assert student.fit(X, y).score(X, y) > 0.9


def test_a_network(digits):
    X, y, teacher = digits
    given = TorchStudent(network, lr=0.2, max_epochs=15, random_state=0, soft_ratio=0.5)
    before = given.get_params()
    plan = DistillationPlan(given, teacher, n_orders=2, **GRID).fit(X, y)
    assert given.get_params() == before
    student = plan.student_()
    assert isinstance(student, TorchStudent)
    assert student.soft_ratio == plan.recipe_.soft_ratio
    assert student.temperature_scaling == "squared"
    assert student.fit(X, y).score(X, y) > 0.9
    assert "pilots" in str(plan.findings_["trust"])
    assert plan.forecasts_[0].by_ratio[1.0].error.shape == (4,)


def test_a_module_is_a_network(digits):
    X, y, teacher = digits
    module = network(X.shape[1], 2)
    plan = DistillationPlan(module, teacher, n_orders=2, **GRID).fit(X, y)
    assert plan.student_().module is not module  # cloned
    assert plan.search_.kernel.outputs is not None


def test_students_are_compared_row_by_row(digits):
    X, y, teacher = digits
    students = {"one": NTK(depth=2), "the same": NTK(depth=2), "linear": NTK(depth=1)}
    plan = DistillationPlan(students, teacher, n_orders=2, **GRID).fit(X, y)
    assert set(plan.searches_) == set(students)
    found = plan.findings_["student"]
    # Of equals none is ahead.
    assert {"one", "the same"} <= {found.claim, *found.values["as_good"]}
    scores = [search.best_score_ for search in plan.searches_.values()]
    assert plan.search_.best_score_ == max(scores)
    folds = {search.n_splits_ for search in plan.searches_.values()}
    assert folds == {5}


def test_teachers_alone_and_mixed(digits):
    X, y, good = digits
    bad = FrozenEstimator(LogisticRegression().fit(X[:40], 1 - y[:40]))
    soft = GRID | {"soft_ratios": (0.9, 1.0)}
    plan = DistillationPlan(teachers={"good": good, "bad": bad}, **soft).fit(X, y)
    found = plan.findings_["teacher"]
    assert found.claim == "good"
    assert found.values["losses"]["bad"].is_worse
    assert set(found.values["losses"]) == {"good", "bad", "all in equal parts"}
    assert found.values["accuracies"]["good"] == pytest.approx(good.score(X, y))
    assert plan.student_().teacher is good


def test_logits_stand_in_for_teachers(plan, digits):
    X, y, teacher = digits
    z_t = teacher.decision_function(X)
    by_logits = DistillationPlan(**GRID).fit(X, y, teacher_logits=z_t)
    assert by_logits.summary() == plan.summary()
    soft = GRID | {"soft_ratios": (0.9, 1.0)}
    both = DistillationPlan(**soft).fit(X, y, teacher_logits={"a": z_t, "b": -z_t})
    assert both.findings_["teacher"].claim == "a"
    with pytest.raises(ValueError, match="pass the teacher itself"):
        both.search_.best_estimator_.teacher_decision_function(X[:5])


def test_validation_rows_are_scored(digits):
    X, y, teacher = digits
    wrong = y[:120].copy()
    wrong[::4] = 1 - wrong[::4]
    plan = DistillationPlan(teachers=teacher, **GRID).fit(X[:120], wrong, X[120:], y[120:])
    assert plan.findings_["recipe"].values["accuracy"] == plan.search_.best_score_
    own = plan.student_().fit(X[:120], wrong).score(X[120:], y[120:])
    assert own == pytest.approx(plan.search_.best_score_)
    assert "X_val" in str(plan.findings_["labels worth checking"])
    z_t = teacher.decision_function(X)
    again = DistillationPlan(**GRID).fit(
        X[:120], wrong, X[120:], y[120:],
        teacher_logits=z_t[:120], teacher_logits_val=z_t[120:],
    )  # fmt: skip
    assert again.summary() == plan.summary()


def test_rows_without_a_label(digits):
    X, y, teacher = digits
    some = y.copy()
    some[100:] = -1
    plan = DistillationPlan(teachers=teacher, **GRID).fit(X, some)
    assert (plan.n_labelled_, plan.n_rows_) == (100, 200)
    assert [one.curves.grows for one in plan.forecasts_] == ["labelled", "unlabelled"]
    assert "100 labelled and 100 unlabelled rows" in plan.summary()


def test_an_unfitted_teacher_is_cross_fitted(digits):
    X, y, _ = digits
    plan = DistillationPlan(teachers=LogisticRegression(), n_orders=2, **GRID).fit(X, y)
    assert plan.search_.best_estimator_.fit_report_.cross_fitted_teacher
    assert plan.forecasts_[0].floor is None  # the teacher learns from more rows, too


def test_labels_that_both_contradict_are_named(digits):
    X, y, _ = digits
    sure = FrozenEstimator(LogisticRegression(C=10).fit(X, y))
    wrong = y.copy()
    wrong[[10, 20]] = 1 - wrong[[10, 20]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plan = DistillationPlan(teachers=sure, **GRID).fit(X, wrong)
    assert {10, 20} <= set(plan.findings_["labels worth checking"].values["doubtful"].tolist())


def test_a_teacher_that_has_seen_the_labels_is_pointed_out(digits):
    X, y, _ = digits
    seen = FrozenEstimator(LogisticRegression(C=100).fit(X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plan = DistillationPlan(teachers=seen, **GRID).fit(X, y)
    assert "seen these labels" in str(plan.findings_["trust"])


def test_a_failed_or_interrupted_fit_leaves_the_plan_as_it_was(plan, digits, monkeypatch):
    X, y, _ = digits
    plan = clone(plan).fit(X, y)
    before = vars(plan).copy()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_plan, "learning_curves", interrupt)
    with pytest.raises(KeyboardInterrupt):
        plan.fit(X[:100], y[:100])
    assert vars(plan) == before


def test_a_progress_bar_moves(digits, capsys):
    X, y, teacher = digits
    plan = DistillationPlan(teachers=teacher, n_orders=2, **GRID)
    plan.set_callbacks(ProgressBar()).fit(X, y)
    assert "100%" in capsys.readouterr().out


def test_warnings_are_said_once(digits):
    X, y, _ = digits
    saturated = FrozenEstimator(LogisticRegression(C=1e6, max_iter=10_000).fit(X[:60], y[:60]))
    saturated.estimator.coef_ *= 50
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DistillationPlan(teachers=saturated, **GRID).fit(X, y)
    told = [str(one.message) for one in caught]
    assert len(told) == len(set(told))


def test_it_is_pickled(plan):
    again = pickle.loads(pickle.dumps(plan))
    assert again.summary() == plan.summary()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"student": "ntk"}, TypeError, "student='ntk' is a str; it must be a kernel"),
        ({"student": network}, TypeError, "TorchStudent"),
        ({"student": []}, ValueError, "holds no student"),
        ({"teachers": {"a": 3}}, TypeError, r"teachers\['a'\]=3 is no teacher"),
        ({"teachers": {}}, ValueError, "holds no teacher"),
        ({"n_orders": 1}, ValueError, "n_orders"),
        ({"temperature_scaling": "cubed"}, ValueError, "temperature_scaling"),
    ],
)
def test_parameters_that_cannot_be(params, error, message, digits):
    X, y, _ = digits
    with pytest.raises(error, match=message):
        DistillationPlan(**params).fit(X, y)


def test_arguments_that_cannot_be(digits):
    X, y, teacher = digits
    z_t = teacher.decision_function(X)
    with pytest.raises(ValueError, match="teachers=None, or pass no logits"):
        DistillationPlan(teachers=teacher).fit(X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="pass both, or neither"):
        DistillationPlan(teachers=teacher).fit(X, y, X_val=X)
    with pytest.raises(ValueError, match="teacher_logits_val"):
        DistillationPlan().fit(X, y, X, y, teacher_logits=z_t)
    with pytest.raises(ValueError, match="2 labels, of which no answer follows"):
        DistillationPlan(teachers=teacher).fit(X[:2], np.array([0, 1]))
    with pytest.raises(ValueError, match="class"):
        DistillationPlan().fit(X, np.zeros(len(X), int))
    with pytest.raises(ValueError, match=r"teacher_logits\['b'\]"):
        DistillationPlan().fit(X, y, teacher_logits={"a": z_t, "b": z_t[:5]})


def test_data_frames_strings_and_missing_labels(digits):
    X, y, teacher = digits
    names = np.array(["three", "eight"], dtype=object)[y]
    names[150:] = None
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(X.shape[1])])
    named = FrozenEstimator(LogisticRegression(C=0.01).fit(frame[:60], names[:60].astype(str)))
    plan = DistillationPlan(teachers=named, n_orders=2, **GRID).fit(frame, names)
    assert plan.classes_.tolist() == ["eight", "three"]
    assert (plan.n_labelled_, plan.n_rows_) == (150, 200)
    assert plan.feature_names_in_[0] == "pixel 0"
    z_t = pd.DataFrame({"three": 0.0, "eight": teacher.decision_function(X)})
    again = DistillationPlan(n_orders=2, **GRID).fit(frame, names, teacher_logits=z_t)
    assert again.findings_["teacher"].values["accuracies"]["teacher"] > 0.9


def test_the_same_in_single_precision_and_with_copies_of_rows(digits):
    X, y, teacher = digits
    plan = DistillationPlan(teachers=teacher, n_orders=2, **GRID)
    twice = plan.fit(np.repeat(X, 2, axis=0).astype(np.float32), np.repeat(y, 2))
    assert twice.search_.best_score_ > 0.9
    assert "distinct labelled rows" in str(twice.findings_["hard labels"])
