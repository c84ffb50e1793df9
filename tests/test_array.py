"""The crossing between arrays and tensors."""

import datetime
import decimal
import fractions
import multiprocessing
import os
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.utils import Bunch

from sklearn_kd import LinearizedKDStudent
from sklearn_kd._array import like, on_arrays, to_tensor


@on_arrays
def describe(frame, values, *, generator=None, init="zero", flag=False):
    assert isinstance(values, torch.Tensor)
    assert values.dtype == torch.float64
    count = torch.tensor(len(values))
    return {"twice": 2 * values, "parts": (values.sum(), count), "seen": (frame, generator, flag)}


class Frame:
    """Stands for anything that is not data."""


@pytest.mark.parametrize(
    ("values", "array", "floating"),
    [
        ([1.0, 2.0], np.ndarray, np.float64),
        (range(1, 3), np.ndarray, np.float64),
        (np.array([1, 2], dtype=np.float32), np.ndarray, np.float32),
        (torch.tensor([1.0, 2.0]), torch.Tensor, torch.float32),
        (torch.tensor([1, 2]), torch.Tensor, torch.float64),
    ],
)
def test_data_is_converted_and_answered_in_kind(values, array, floating):
    frame, generator = Frame(), np.random.default_rng(0)
    answer = describe(frame, values, generator=generator, flag=np.True_)
    assert isinstance(answer, Bunch)
    assert isinstance(answer.twice, array)
    assert answer.twice.dtype == floating
    assert answer.twice.tolist() == [2.0, 4.0]
    total, count = answer.parts
    assert total.dtype == floating
    assert count.dtype in (torch.int64, np.int64)  # integers are not rounded
    seen_frame, seen_generator, flag = answer.seen
    assert seen_frame is frame
    assert seen_generator is generator
    assert flag is np.True_


def test_the_first_array_decides_even_by_keyword():
    answer = describe(Frame(), generator="none", values=torch.ones(3))
    assert isinstance(answer.twice, torch.Tensor)


class TakesNoCopy:
    """As NumPy 1 asked for."""

    def __array__(self):
        return np.array([1.0, 2.0, 3.0])


class TakesNoCopyEither:
    def __array__(self, dtype=None):
        return np.array([1.0, 2.0, 3.0], dtype=dtype)


def read_only(values):
    values.flags.writeable = False
    return values


VALUES = np.array([1.0, 2.0, 3.0])
STRICT = pytest.importorskip("array_api_strict")
WITH_GRADIENT = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
with torch.inference_mode():
    IN_INFERENCE = torch.tensor([1.0, 2.0, 3.0]).double()

NUMBERS = {
    "list": [1, 2.0, 3],
    "range": range(1, 4),
    "array": VALUES,
    "read-only": read_only(VALUES.copy()),
    "negative strides": VALUES[::-1].copy()[::-1],
    "strided": np.repeat(VALUES, 2)[::2],
    "big-endian": VALUES.astype(">f8"),
    "big-endian float32": VALUES.astype(">f4"),
    "big-endian integers": VALUES.astype(">i4"),
    "read-only big-endian backwards": read_only(VALUES[::-1].astype(">i2"))[::-1],
    "longdouble": VALUES.astype(np.longdouble),
    "half": VALUES.astype(np.float16),
    "uint16": VALUES.astype(np.uint16),
    "uint64": VALUES.astype(np.uint64),
    "int8": VALUES.astype(np.int8),
    "objects": np.array([1, 2.0, np.float32(3)], dtype=object),
    "fractions": [fractions.Fraction(1), decimal.Decimal(2), np.int8(3)],
    "masked, but nothing is": np.ma.array(VALUES, mask=False),
    "Series": pd.Series(VALUES),
    "nullable Series": pd.Series([1, 2, 3], dtype="Int64"),
    "mixed Series": pd.Series([1, 2.0, 3], dtype=object),
    "categories": pd.Series([1, 2, 3], dtype="category"),
    "no copy": TakesNoCopy(),
    "no copy, but a dtype": TakesNoCopyEither(),
    "tensor": torch.tensor([1.0, 2.0, 3.0]),
    "integer tensor": torch.tensor([1, 2, 3]),
    "gradient": WITH_GRADIENT,
    "parameter": torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])),
    "bfloat16": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
    "half tensor": torch.tensor([1.0, 2.0, 3.0], dtype=torch.half),
    "inference": IN_INFERENCE,
    "negative view": torch.tensor([-1j, -2j, -3j]).conj().imag,
    "array API": STRICT.asarray([1.0, 2.0, 3.0]),
    "read-only array API": STRICT.asarray(read_only(VALUES.copy())),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_kind_of_numbers_is_right(kind):
    values = NUMBERS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = to_tensor(values)
        answer = describe(Frame(), values)
    assert tensor.dtype == torch.float64
    assert tensor.tolist() == [1.0, 2.0, 3.0]
    assert not tensor.requires_grad
    assert not tensor.is_inference()
    assert answer.twice.tolist() == [2.0, 4.0, 6.0]
    single = "float32" in kind or getattr(values, "dtype", None) is torch.float32
    assert str(answer.twice.dtype).endswith("float32" if single else "float64")


def test_data_frames():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})
    assert to_tensor(frame).tolist() == [[1, 0.5, 1], [2, 1.5, 0]]


NO_NUMBERS = {
    "complex": (VALUES * 1j, "holds complex numbers"),
    "complex tensor": (torch.tensor([1j]), "holds complex numbers"),
    "long complex": (VALUES.astype(np.clongdouble), "holds complex numbers"),
    "complex objects": (np.array([1, 2j], dtype=object), "holds 2j, a complex"),
    "dates": (np.array(["2020-01-01"], dtype="M8[D]"), "holds datetime64.* values"),
    "spans": (np.array([1], dtype="m8[s]"), "holds timedelta64.* values"),
    "date objects": ([datetime.date(2020, 1, 1)], "holds .*, a date, among its objects"),
    "Series of dates": (pd.to_datetime(pd.Series(["2020-01-01"])), "holds datetime64.* values"),
    "strings": (["1.5"], "holds <U3 values"),
    "string objects": (np.array(["1.5"], dtype=object), "holds '1.5', a str"),
    "missing": (np.array([1.0, None], dtype=object), "holds None, a NoneType"),
    "NA": (pd.Series([1, pd.NA], dtype=object), "holds <NA>, a NAType"),
    "ragged": ([[1.0], [1.0, 2.0]], "is no array"),
    "structured": (np.zeros(2, dtype=[("a", float)]), "holds .*; convert them to numbers"),
    "masked": (np.ma.array(VALUES, mask=[0, 1, 0]), "has masked entries"),
    "sparse": (scipy.sparse.csr_array(np.eye(2)), r"is a sparse matrix; pass its toarray\(\)"),
    "sparse tensor": (torch.eye(2).to_sparse(), r"is a sparse tensor; pass its to_dense\(\)"),
    "compressed tensor": (torch.eye(2).to_sparse_coo().coalesce(), "is a sparse tensor"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_holds_no_numbers_is_named(kind):
    values, message = NO_NUMBERS[kind]
    with pytest.raises(ValueError, match=f"the input {message}"):
        to_tensor(values)
    with pytest.raises(ValueError, match=f"values {message}"):
        describe(Frame(), values)
    with pytest.raises(ValueError, match=f"values {message}"):
        describe(Frame(), values=values)


def test_too_many_arguments_are_not_dropped():
    with pytest.raises(TypeError, match="positional"):
        describe(Frame(), [1.0], [2.0])


@pytest.mark.parametrize("kind", ["array", "tensor", "array API"])
def test_a_copy_shares_no_memory(kind):
    reference = {"array": VALUES, "tensor": torch.ones(3), "array API": STRICT.ones(3)}[kind]
    own = torch.ones(3).double()
    shared, kept = like(own, reference), like(own, reference, copy=True)
    assert type(shared) is type(kept)
    own += 1
    assert to_tensor(kept).tolist() == [1, 1, 1]
    if kind != "array API":
        assert to_tensor(shared).tolist() == [2, 2, 2]
    values = np.ones(3)
    assert like(values, VALUES) is values
    kept = like(values, reference, copy=True)
    values += 1
    assert to_tensor(kept).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_copied_tensor_shares_no_memory(kind):
    values = VALUES.copy() if kind == "array" else torch.as_tensor(VALUES.copy())
    shared, kept = to_tensor(values), to_tensor(values, copy=True)
    values += 1
    assert shared.tolist() == [2, 3, 4]
    assert kept.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "dtype", [">i4", "int8", "uint16", ">f8", "longdouble", "M8[D]", "U3", "bool"]
)
def test_labels_of_any_dtype(dtype):
    labels = np.array([0, 1, 1]).astype(dtype)
    assert like(labels, VALUES) is labels
    found = like(labels, torch.ones(1))
    if labels.dtype.kind in "biuf" and dtype != "longdouble":
        assert isinstance(found, torch.Tensor)
        assert found.tolist() == labels.tolist()
        assert isinstance(like(labels, STRICT.ones(1)), type(STRICT.ones(1)))
    else:
        assert found is labels
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = (X[:, 0] > 0).astype(int).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted = LinearizedKDStudent().fit(X, y, teacher_logits=X[:, 0]).predict(X)
    np.testing.assert_array_equal(predicted, y)


@pytest.mark.parametrize("kind", ["big-endian", "read-only", "longdouble", "Series"])
def test_logits_and_weights_of_any_kind(kind):
    X = np.random.default_rng(0).normal(size=(30, 3))
    of_kind = {
        "big-endian": lambda a: a.astype(">f8"),
        "read-only": lambda a: read_only(a.copy()),
        "longdouble": lambda a: a.astype(np.longdouble),
        "Series": pd.Series,
    }[kind]
    y, z, weights = X[:, 0] > 0, X[:, 0].copy(), np.linspace(1, 2, 30)
    expected = (
        LinearizedKDStudent()
        .fit(X, y, teacher_logits=z, sample_weight=weights)
        .decision_function(X)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student = LinearizedKDStudent().fit(
            X, y, teacher_logits=of_kind(z), sample_weight=of_kind(weights)
        )
    np.testing.assert_array_equal(student.decision_function(X), expected)
    with pytest.raises(ValueError, match="teacher_logits holds complex numbers"):
        student.fit(X, y, teacher_logits=z * 1j)


FORKED = """
import multiprocessing, os
import numpy as np, torch
from sklearn_kd import LinearizedKDStudent
torch.set_num_threads(2)
X = np.random.default_rng(0).normal(size=(1200, 20))
z = X.sum(axis=1)
student = LinearizedKDStudent().fit(X, z > 0, teacher_logits=z)
expected = student.decision_function(X[:700])
def child(queue):
    queue.put(student.decision_function(X[:700]))
    own = LinearizedKDStudent().fit(X[:600], z[:600] > 0, teacher_logits=z[:600])
    queue.put(own.dual_coef_.shape)
queue = multiprocessing.get_context("fork").Queue()
process = multiprocessing.get_context("fork").Process(target=child, args=(queue,))
process.start()
try:
    np.testing.assert_allclose(queue.get(timeout=60), expected, rtol=1e-9)
    assert queue.get(timeout=60) == (600,)
finally:
    process.kill()
assert torch.get_num_threads() == 2  # of the parent
print("answered")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_answers():
    assert "fork" in multiprocessing.get_all_start_methods()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert done.stdout == "answered\n", done.stderr
