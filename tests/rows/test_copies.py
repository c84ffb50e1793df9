"""Merging of exact duplicate rows."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sklearn_kd.rows._copies
from sklearn_kd.rows._copies import copies_in, merge_rows, row_hashes
from sklearn_kd.rows._streams import as_row_stream


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    hnp.arrays(float, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 2))
)
def test_groups_are_the_equal_rows_in_order_of_appearance(X):
    merged = merge_rows(torch.as_tensor(X))
    distinct = []
    for i, row in enumerate(X.tolist()):
        if row not in distinct:
            distinct.append(row)
        assert distinct[merged.group[i]] == row
    assert X[merged.first.numpy()].tolist() == distinct
    assert merged.n_distinct == len(distinct)
    assert merged.n_merged == len(X) - len(distinct)


def test_signed_zeros_are_equal():
    assert merge_rows(torch.tensor([[0.0, 1.0], [-0.0, 1.0]])).n_distinct == 1


def test_weighted_mean_over_the_copies():
    merged = merge_rows(torch.tensor([[0.0], [1.0], [0.0]]))
    values, weights = torch.tensor([1.0, 7.0, 4.0]), torch.tensor([2.0, 5.0, 1.0])
    assert merged.mean(values, weights).tolist() == [2.0, 7.0]
    assert merged.total(weights).tolist() == [3.0, 5.0]
    columns = torch.stack([values, -values], dim=1)
    assert merged.mean(columns, weights).tolist() == [[2.0, -2.0], [7.0, -7.0]]


def test_rows_without_copies_keep_their_values_bit_for_bit():
    rng = np.random.default_rng(0)
    X = torch.as_tensor(np.vstack([rng.normal(size=(50, 2)), np.zeros((2, 2))]))
    values, weights = torch.as_tensor(rng.normal(size=52)), torch.as_tensor(rng.uniform(size=52))
    mean = merge_rows(X).mean(values, weights)
    assert (mean[:50] == values[:50]).all()


def test_copies_among_some_of_the_rows():
    rng = np.random.default_rng(0)
    X = torch.as_tensor(rng.integers(0, 2, size=(60, 4)).astype(float))
    for share in (0.05, 0.5, 1.0):
        kept = torch.as_tensor(np.flatnonzero(rng.random(60) <= share))
        expected, found = merge_rows(X[kept]), merge_rows(X).among(kept)
        assert (found.first == expected.first).all()
        assert (found.group == expected.group).all()


def hash_of(row):
    """Two 64-bit sums over the columns, with Python's integers."""

    def mixed(value):
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    sums = [0, 0]
    for column, entry in enumerate(row, 1):
        bits = int(np.float64(entry + 0.0).view(np.uint64))
        for half in range(2):
            salt = (column * 0x9E3779B97F4A7C15 + half * 0xBF58476D1CE4E5B9) % 2**64
            sums[half] += mixed((mixed(bits ^ salt) + salt) % 2**64)
    return [total % 2**64 for total in sums]


def test_hashes_do_not_depend_on_the_number_of_rows(monkeypatch):
    X = np.random.default_rng(0).normal(size=(30, 5))
    X[3, 2], X[4, 2] = 0.0, -0.0
    expected = [hash_of(row) for row in X]
    assert row_hashes(X).tolist() == expected
    monkeypatch.setattr(sklearn_kd.rows._copies, "_ENTRIES_IN_CACHE", 35)
    assert row_hashes(X).tolist() == expected


def test_copies_in_a_stream_are_those_in_memory():
    X = np.random.default_rng(0).integers(0, 2, size=(200, 4)).astype(float)
    for rows in (X, np.random.default_rng(0).normal(size=(200, 4))):
        expected = merge_rows(torch.as_tensor(rows))
        stream = as_row_stream(rows)
        found = copies_in(stream, torch.empty(0, dtype=torch.float64))
        assert (found.first == expected.first).all()
        assert (found.group == expected.group).all()
        assert stream.digest(torch.float64) == as_row_stream(rows).digest(torch.float64)
