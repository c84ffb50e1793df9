"""Parts of a stream: narrowed, selected, pickled, they are what indexing the array gives."""

import pickle

import numpy as np
import pytest
import torch
from row_sources import SOURCES, X

from sklearn_kd.rows._parts import ArrayPart
from sklearn_kd.rows._streams import as_row_stream

NUMBERS = np.array([0, 3, 29, 30, 31, 40, 78, 79, 99])


@pytest.fixture(params=SOURCES)
def stream(request, tmp_path):
    return as_row_stream(SOURCES[request.param](tmp_path))


def rows(stream, size=7):
    return torch.cat([block for _, block in stream.blocks(size)])


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 30), (12, 35), (31, 77), (40, 41)])
def test_between(stream, start, stop):
    part = stream.between(start, stop)
    assert part.shape == (stop - start, 3)
    np.testing.assert_array_equal(rows(part), X[start:stop])
    np.testing.assert_array_equal(rows(pickle.loads(pickle.dumps(part))), X[start:stop])
    inner = part.between(0, 1).take(np.array([0]))
    np.testing.assert_array_equal(inner, X[start : start + 1])


def test_only(stream):
    assert stream.only(np.arange(100)) is stream
    part = stream.only(NUMBERS)
    assert len(part) == 9
    np.testing.assert_array_equal(rows(part, 2), X[NUMBERS])
    np.testing.assert_array_equal(part.take(np.array([1, 5])), X[NUMBERS[[1, 5]]])
    narrow = pickle.loads(pickle.dumps(part.between(1, 6)))
    np.testing.assert_array_equal(rows(narrow), X[NUMBERS[1:6]])


def test_what_is_sent_holds_only_its_own_rows():
    values = np.zeros((100_000, 10))
    stream = as_row_stream(values)
    for part in (stream.between(0, 100), stream.only(np.arange(50_000) * 2).between(0, 50)):
        assert len(pickle.dumps(part)) < 20_000
    dask_array = pytest.importorskip("dask.array").from_array(values, chunks=(1000, 10))
    assert len(pickle.dumps(as_row_stream(dask_array).between(0, 1000))) < 200_000


def test_memory_maps_are_read_row_by_row(tmp_path):
    np.save(tmp_path / "rows.npy", X)
    values = np.load(tmp_path / "rows.npy", mmap_mode="r")
    part = ArrayPart(values).only(NUMBERS)
    assert part.load().values is values
    np.testing.assert_array_equal(part.load()[2:4], X[NUMBERS[2:4]])
