"""RowStream: every source gives the same blocks, from any start, and says what is wrong."""

import numpy as np
import pytest
import torch
from row_sources import SOURCES, X, folder

from sklearn_kd.rows._streams import as_row_stream


@pytest.fixture(params=SOURCES)
def stream(request, tmp_path):
    return as_row_stream(SOURCES[request.param](tmp_path))


def test_blocks_hold_all_rows_in_order(stream):
    assert (stream.n_rows, stream.n_features) == (100, 3)
    blocks = list(stream.blocks(13))
    assert all(rows.stop - rows.start == len(block) <= 13 for rows, block in blocks)
    np.testing.assert_array_equal(torch.cat([block for _, block in blocks]), X)


def test_starting_at_a_block_gives_the_same_blocks(stream):
    blocks = list(stream.blocks(9))
    for skipped in (1, 5, len(blocks)):
        start = blocks[skipped - 1][0].stop
        rest = list(stream.blocks(9, start))
        assert [rows for rows, _ in rest] == [rows for rows, _ in blocks[skipped:]]


def test_take(stream):
    numbers = np.array([0, 29, 30, 31, 78, 99])
    np.testing.assert_array_equal(stream.take(numbers), X[numbers])
    assert stream.take(numbers, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_rows_that_are_not_finite_are_named(tmp_path, suffix):
    values = X.copy()
    values[80, 1] = np.nan
    stream = as_row_stream(folder(tmp_path, suffix, values))
    with pytest.raises(ValueError, match=r"rows \[80\]; remove or impute"):
        list(stream.blocks(10))
    with pytest.raises(ValueError, match=r"rows \[80\]"):
        stream.take(np.array([3, 80]))


def test_values_beyond_float32():
    stream = as_row_stream(np.full((2, 2), 1e300))
    with pytest.raises(ValueError, match=r"too large for torch\.float32"):
        list(stream.blocks(10, dtype=torch.float32))


def test_errors_of_folders(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        as_row_stream(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"holds no \.npy or \.npz"):
        as_row_stream(tmp_path)
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :2])
    with pytest.raises(ValueError, match=r"b\.npy .* has 2 columns, but a\.npy has 3"):
        as_row_stream(tmp_path)
    np.savez(tmp_path / "b.npz", rows=X)
    (tmp_path / "b.npy").unlink()
    with pytest.raises(ValueError, match="holds no array named 'X'"):
        as_row_stream(tmp_path)


def test_a_file_that_changes(tmp_path):
    stream = as_row_stream(folder(tmp_path, ".npy"))
    np.save(tmp_path / "001.npy", X)
    with pytest.raises(ValueError, match="must not change during a fit"):
        list(stream.blocks(50))


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i2", "float16", "longdouble", "uint16", "bool"])
@pytest.mark.parametrize("source", ["array", "memmap", "npy", "npz", "dask"])
def test_any_real_dtype_and_byte_order(tmp_path, dtype, source):
    values = (10 * X).astype(dtype)
    if source == "memmap":
        np.save(tmp_path / "rows.npy", values)
        rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    elif source == "dask":
        rows = pytest.importorskip("dask.array").from_array(values, chunks=(40, 3))
    else:
        rows = values if source == "array" else folder(tmp_path, f".{source}", values)
    found = torch.cat([block for _, block in as_row_stream(rows).blocks()])
    np.testing.assert_array_equal(found, values.astype(float))


@pytest.mark.parametrize("bad", [X[0], X.astype(complex), np.array([["a"]]), np.empty((3, 0))])
def test_what_is_no_table(bad):
    with pytest.raises(ValueError, match="must be a table of real numbers"):
        as_row_stream(bad)


def test_dask_of_unknown_shape():
    array = pytest.importorskip("dask.array").from_array(X, chunks=40)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        as_row_stream(array[array[:, 0] > 0])


def test_the_digest_is_that_of_the_rows_however_they_are_read(stream):
    kept = np.arange(0, 100, 2)
    unread = stream.only(kept).digest(torch.float64)
    assert unread == as_row_stream(X[kept]).digest(torch.float64)
    expected = as_row_stream(X).digest(torch.float64)
    assert stream.digest(torch.float64) == expected != stream.digest(torch.float32)
    changed = X.copy()
    changed[1] += 1  # is not among those that are kept
    other = as_row_stream(changed)
    assert other.digest(torch.float64) != expected
    # What has been read is not read again: the digest of some rows follows from that of all.
    assert other.only(kept).digest(torch.float64) != stream.only(kept).digest(torch.float64)
