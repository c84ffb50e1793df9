"""Inputs of every dtype and container: the right student, or an error with a way out."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher, TorchTeacher
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.solvers import Nystrom

X, Y = make_classification(n_samples=24, n_features=4, random_state=0)
X = np.round(8 * X)  # exact in float16
Z, WEIGHTS = np.round(X[:, 0] / 4), 1.0 + np.arange(24) % 3
FRAME = pd.DataFrame(X, columns=list("abcd"))
NUMBERS = [">i4", "<i2", "float16", ">f2", ">f4", ">f8", "longdouble", "uint64", "O"]
MODELS = {
    "student": lambda: LinearizedKDStudent(ridge=0.5),
    "search": lambda: LinearizedKDStudentCV(soft_ratios=[0.5], temperatures=[1.0], cv=2),
    "teacher": NTKTeacher,
}


def logits_of(rows=X, labels=Y, weights=WEIGHTS, z=Z, model="student", new_rows=None):
    """Return a model's logits on its training rows, and check that all methods take them."""
    metadata = {} if model == "teacher" else {"teacher_logits": z}
    fitted = MODELS[model]().fit(rows, labels, weights, **metadata)
    assert len(fitted.predict(rows)) == len(fitted.predict_proba(rows)) == 24
    assert fitted.score(rows, labels) <= 1
    if model == "student":
        assert len(fitted.effective_decision_function(rows, labels, z)) == 24
        fitted.prefix_path(rows, teacher_logits=z, y=labels, sizes=[5])
    return np.asarray(fitted.decision_function(X if new_rows is None else new_rows))


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("model", MODELS)
def test_numbers_of_any_dtype(model, dtype):
    expected = logits_of(model=model)
    for name, values in {"rows": X + 40, "weights": WEIGHTS, "z": Z + 9}.items():
        given = logits_of(model=model, **{name: values.astype(dtype)})
        plain = expected if name == "weights" else logits_of(model=model, **{name: values})
        np.testing.assert_allclose(given, plain, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "dtype", [">i4", "uint8", "bool", "float16", "longdouble", "datetime64[D]", "U3", ">U3"]
)
@pytest.mark.parametrize("model", MODELS)
def test_labels_of_any_dtype(model, dtype):
    labels = Y.astype(dtype)
    np.testing.assert_array_equal(logits_of(labels=labels, model=model), logits_of(model=model))
    metadata = {} if model == "teacher" else {"teacher_logits": Z}
    fitted = MODELS[model]().fit(X, labels, **metadata)
    assert fitted.classes_.dtype == fitted.predict(X).dtype == np.unique(labels).dtype


@pytest.mark.parametrize("name", ["rows", "labels", "weights", "z"])
@pytest.mark.parametrize("kind", ["read-only", "reversed", "memory map", "series", "list"])
def test_containers(name, kind, tmp_path):
    values = {"rows": X, "labels": Y, "weights": WEIGHTS, "z": Z}[name]
    np.save(tmp_path / "values.npy", values)
    index = np.arange(24)[::-1]  # not that of the rows: as in scikit-learn, order counts
    given = {
        "read-only": lambda: read_only(values),
        "reversed": lambda: values[::-1][::-1],
        "memory map": lambda: np.load(tmp_path / "values.npy", mmap_mode="r"),
        "series": lambda: (pd.Series if values.ndim == 1 else pd.DataFrame)(values, index=index),
        "list": values.tolist,
    }[kind]()
    np.testing.assert_allclose(logits_of(**{name: given}), logits_of(), rtol=1e-12)


def test_a_number_weighs_every_row():
    np.testing.assert_array_equal(logits_of(weights=2), logits_of(weights=np.full(24, 2.0)))


NO_ROWS = {
    "dates": (X.astype("datetime64[D]"), r"X holds datetime64\[D\] values, dates.*timedelta64"),
    "records": (FRAME.to_records(index=False), r"X holds .* records.*structured_to_unstructured"),
    "images": (X.reshape(24, 1, 2, 2), r"\(24, 1, 2, 2\).*reshape.*input_shape=\(1, 2, 2\)"),
    "masked": (np.ma.masked_array(X, X > 0), "X has masked entries; fill or drop"),
    "a column of dates": (FRAME.assign(c=pd.Timestamp(0)), r"dates .* column 'c'.*dt\.days"),
    "dates alone": (FRAME.astype("datetime64[ns]"), r"dates .* columns 'a', 'b', 'c', 'd'"),
    "a column of strings": (FRAME.assign(c="u"), "no numbers in column 'c'.*encode"),
    "categories": (FRAME.assign(c=pd.Categorical(["u", "v"] * 12)), "no numbers in column 'c'"),
    "missing": (FRAME.where(FRAME < 9), r"missing values in column.*impute"),
    "both": (FRAME.assign(c="u", a=None), "no numbers in column 'c' and missing .* column 'a'"),
    "complex": (X + 1j, "Complex data not supported"),
}


@pytest.mark.parametrize("kind", NO_ROWS)
@pytest.mark.parametrize("model", MODELS)
def test_what_rows_cannot_be_in_fit_and_predict_alike(model, kind):
    rows, message = NO_ROWS[kind]
    metadata = {} if model == "teacher" else {"teacher_logits": Z}
    estimator = MODELS[model]()
    with pytest.raises(ValueError, match=message):
        estimator.fit(rows, Y, **metadata)
    assert not hasattr(estimator, "classes_")
    fitted = MODELS[model]().fit(FRAME if hasattr(rows, "columns") else X, Y, **metadata)
    for predictor in (fitted, TorchTeacher(torch.nn.Linear(4, 1), [0, 1])):
        with pytest.raises(ValueError, match=message):
            predictor.predict(rows)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balanced", r"sample_weight='balanced'.*compute_sample_weight\('balanced', y\)"),
        ({0: 1, 1: 2}, r"compute_sample_weight\(\{0: 1, 1: 2\}, y\)"),
        (WEIGHTS.astype("datetime64[D]"), r"sample_weight holds datetime64\[D\] values"),
        (WEIGHTS.astype("U3"), "sample_weight holds <U3 values"),
        (WEIGHTS.astype("S3"), r"sample_weight holds \|S3 values"),
        (np.ma.masked_array(WEIGHTS, WEIGHTS > 2), "sample_weight has masked entries"),
        (WEIGHTS + 1j, "Complex data not supported"),
    ],
    ids=["word", "dict", "dates", "strings", "bytes", "masked", "complex"],
)
@pytest.mark.parametrize("model", MODELS)
def test_what_weights_cannot_be(model, weights, message):
    with pytest.raises(ValueError, match=message):
        logits_of(weights=weights, model=model)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y.astype(object), "Unknown label type: y holds objects of type int; .*astype"),
        (np.where(Y, "a", "b").astype(object), None),
        (np.array([1 if v else "a" for v in Y], dtype=object), "objects of type int, str"),
        (pd.Series(pd.to_datetime(Y, utc=True)), "objects of type Timestamp"),
        (np.array([(v,) for v in Y], dtype=[("label", int)]), "y holds .* records"),
        (np.ma.masked_array(Y, X[:, 0] > 0), "y has masked entries"),
        (Z / 7, "Unknown label type: continuous"),
    ],
    ids=["integers", "strings", "mixed", "timestamps", "records", "masked", "continuous"],
)
@pytest.mark.parametrize("model", MODELS)
def test_labels_that_are_objects(model, labels, message):
    if message is None:
        assert np.isfinite(logits_of(labels=labels, model=model)).all()
        return
    with pytest.raises(ValueError, match=message):
        logits_of(labels=labels, model=model)


@pytest.mark.parametrize("model", MODELS)
def test_columns_in_another_order_are_refused_as_by_scikit_learn(model):
    metadata = {} if model == "teacher" else {"teacher_logits": Z}
    fitted = MODELS[model]().fit(FRAME, Y, **metadata)
    other = FRAME[["d", "a", "b", "c"]]
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(ValueError, match="same order as they were in fit"):
            getattr(fitted, method)(other)


@pytest.mark.parametrize("data", [TensorDataset, DataLoader])
def test_torch_data_sets_are_refused_by_name(data):
    rows = data(torch.from_numpy(X))
    message = rf"X is a {data.__name__} of torch; pass arrays.*numpy\.stack.*solver='nystrom'"
    estimators = [MODELS[model]() for model in MODELS]
    for estimator in [*estimators, LinearizedKDStudent(solver=Nystrom(5))]:
        with pytest.raises(TypeError, match=message):
            estimator.fit(rows, Y)
    for fitted in (
        LinearizedKDStudent().fit(X, Y, teacher_logits=Z),
        TorchTeacher(torch.nn.Linear(4, 1), [0, 1]),
    ):
        with pytest.raises(TypeError, match=message):
            fitted.predict(rows)
    for kernel in (NTK(), EmpiricalNTK(torch.nn.Linear(4, 1))):
        with pytest.raises(TypeError, match=message):
            kernel(rows)
    with pytest.raises(TypeError, match=rf"y is a {data.__name__} of torch"):
        LinearizedKDStudent().fit(X, rows)


def test_swapped_rows_and_labels():
    with pytest.raises(ValueError, match=r"X has shape \(24,\) and y has shape \(24, 4\).*swapped"):
        LinearizedKDStudent(LogisticRegression()).fit(Y, X)
