"""StudentPipeline: numbers for the student, rows as they come for its teacher."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, StudentPipeline
from sklearn_kd.inspection import (
    DataInefficiencyDisplay,
    EffectiveLogitsDisplay,
    HardLabelEffectDisplay,
    TransferRiskDisplay,
)
from sklearn_kd.metrics import neg_data_inefficiency_scorer, neg_transfer_risk_scorer

RNG = np.random.default_rng(0)
N = 60
FRAME = pd.DataFrame(
    {
        "size": RNG.normal(size=N),
        "kind": RNG.choice(["red", "blue", "green"], N),
        "age": np.where(RNG.uniform(size=N) < 0.2, np.nan, RNG.normal(size=N)),
    }
)
Y = np.where((FRAME["size"] + 0.5 * RNG.normal(size=N) > 0) ^ (FRAME["kind"] == "red"), "a", "b")
NEW = FRAME.sample(20, random_state=0).assign(size=lambda frame: frame["size"] + 0.1)


def encoder():
    number = make_pipeline(SimpleImputer(), StandardScaler())
    return ColumnTransformer(
        [("number", number, ["size", "age"]), ("kind", OneHotEncoder(), ["kind"])]
    )


def raw_teacher():
    """A teacher that reads strings and missing values by the names of the columns."""
    return make_pipeline(encoder(), LogisticRegression(C=0.5))


@pytest.mark.parametrize("student", [LinearizedKDStudent, LinearizedKDStudentCV])
def test_teacher_reads_rows_as_they_come_and_student_their_numbers(student):
    model = StudentPipeline(encoder(), student(raw_teacher(), cv=3)).fit(FRAME, Y)
    numbers = encoder().fit(FRAME)
    z_t = cross_val_predict(raw_teacher(), FRAME, Y, cv=3, method="decision_function")
    if student is LinearizedKDStudent:
        expected = student().fit(numbers.transform(FRAME), Y, teacher_logits=z_t)
        np.testing.assert_allclose(model.student_.teacher_logits_, z_t)
        np.testing.assert_allclose(
            model.decision_function(NEW), expected.decision_function(numbers.transform(NEW))
        )
    assert model.student_.n_features_in_ == 5
    assert model.n_features_in_ == 3
    assert list(model.feature_names_in_) == list(FRAME)
    assert list(model.classes_) == ["a", "b"]
    assert model.score(NEW, model.predict(NEW)) == 1
    teacher = raw_teacher().fit(FRAME, Y)
    expected = -np.mean(teacher.predict(NEW) != model.predict(NEW))
    assert neg_transfer_risk_scorer(model, NEW, Y[:20]) == expected


def test_a_frozen_teacher_with_categories_of_pandas():
    frame = FRAME.astype({"kind": "category"})
    teacher = HistGradientBoostingClassifier(min_samples_leaf=5, random_state=0).fit(frame, Y)
    model = StudentPipeline(encoder(), LinearizedKDStudent(FrozenEstimator(teacher), ridge=0.1))
    z_t = model.fit(frame, Y).student_.teacher_logits_
    np.testing.assert_allclose(z_t, teacher.decision_function(frame))


@pytest.mark.parametrize(
    "scoring", [neg_transfer_risk_scorer, neg_data_inefficiency_scorer, "accuracy"], ids=str
)
def test_searches_give_each_fold_its_own_transformer_and_teacher(scoring):
    folds = list(KFold(2).split(FRAME))
    model = StudentPipeline(encoder(), LinearizedKDStudent(raw_teacher(), cv=3))
    grid = {"student__soft_ratio": [0.3, 0.9]}
    search = GridSearchCV(model, grid, scoring=scoring, cv=folds).fit(FRAME, Y)
    for position, soft_ratio in enumerate([0.3, 0.9]):
        for fold, (train, test) in enumerate(folds):
            numbers = encoder().fit(FRAME.iloc[train])
            teacher = raw_teacher().fit(FRAME.iloc[train], Y[train])
            z_t, z_new = (
                cross_val_predict(
                    raw_teacher(), FRAME.iloc[train], Y[train], cv=3, method="decision_function"
                ),
                teacher.decision_function(FRAME.iloc[test]),
            )
            student = LinearizedKDStudent(soft_ratio=soft_ratio).fit(
                numbers.transform(FRAME.iloc[train]), Y[train], teacher_logits=z_t
            )
            rows = numbers.transform(FRAME.iloc[test])
            if scoring == "accuracy":
                expected = student.score(rows, Y[test])
            else:
                expected = scoring(student, rows, Y[test], teacher_logits=z_new)
            found = search.cv_results_[f"split{fold}_test_score"][position]
            assert found == pytest.approx(expected, rel=1e-9)


def test_inside_a_pipeline_and_by_routing():
    named = FunctionTransformer(lambda frame: frame.rename(columns={"SIZE": "size"}))
    model = make_pipeline(named, StudentPipeline(encoder(), LinearizedKDStudent()))
    frame, z = FRAME.rename(columns={"size": "SIZE"}), FRAME["size"].to_numpy()
    weights = 1.0 + np.arange(N) % 2
    expected = LinearizedKDStudent().fit(
        encoder().fit_transform(FRAME), Y, weights, teacher_logits=z
    )
    found = clone(model).fit(
        frame, Y, studentpipeline__teacher_logits=z, studentpipeline__sample_weight=weights
    )
    np.testing.assert_allclose(found[-1].student_.dual_coef_, expected.dual_coef_)
    with sklearn.config_context(enable_metadata_routing=True):
        model[-1].set_fit_request(teacher_logits=True, sample_weight=True, teacher_trust=False)
        routed = model.fit(frame, Y, teacher_logits=z, sample_weight=weights)
    np.testing.assert_allclose(routed[-1].student_.dual_coef_, expected.dual_coef_)


def test_without_a_teacher_of_its_own_the_teacher_takes_numbers():
    model = StudentPipeline(encoder(), LinearizedKDStudent(cv=3)).fit(FRAME, Y)
    assert model.student_.teacher_.n_features_in_ == 5
    assert neg_transfer_risk_scorer(model, NEW, Y[:20]) <= 0


def test_sparse_rows_become_dense():
    sparse = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    sparse.set_params(onehotencoder__handle_unknown="ignore")
    model = StudentPipeline(sparse, LinearizedKDStudent(raw_teacher(), ridge=1.0))
    assert model.fit(FRAME, Y).score(FRAME, Y) > 0.5


def test_displays_find_the_student():
    model = StudentPipeline(encoder(), LinearizedKDStudent(raw_teacher(), cv=3)).fit(FRAME, Y)
    assert EffectiveLogitsDisplay.from_estimator(model)
    assert DataInefficiencyDisplay.from_estimator(model)
    assert TransferRiskDisplay.from_estimator(model, NEW)
    assert HardLabelEffectDisplay.from_estimator(model, NEW, Y[:20])


class Failing(BaseEstimator):
    def fit(self, X, y):
        raise FloatingPointError("teacher")

    def predict_proba(self, X):
        raise NotImplementedError


def test_a_failed_fit_leaves_the_pipeline_as_it_was():
    model = StudentPipeline(encoder(), LinearizedKDStudent(raw_teacher(), cv=3)).fit(FRAME, Y)
    before = model.decision_function(NEW)
    model.set_params(student__teacher=Failing())
    with pytest.raises(FloatingPointError):
        model.fit(FRAME.iloc[::-1], Y)
    np.testing.assert_array_equal(model.decision_function(NEW), before)


@pytest.mark.parametrize("student", [LinearizedKDStudent, LinearizedKDStudentCV])
def test_a_frame_that_only_the_teacher_reads_names_columns_and_the_remedy(student):
    message = "numbers in column 'kind' and missing values in column 'age'.*StudentPipeline"
    with pytest.raises(ValueError, match=message):
        student(raw_teacher()).fit(FRAME, Y)
