"""Damaged and hostile files of rows: a ValueError that names the file, and nothing unpickled."""

import pathlib
import pickle

import numpy as np
import pytest
import torch
from row_sources import X, folder

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.rows._files import read_archive
from sklearn_kd.rows._streams import as_row_stream
from sklearn_kd.solvers import Nystrom

SUFFIXES = [".npy", ".npz"]


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def save(path, values, **options):
    np.save(path, values, **options) if path.suffix == ".npy" else np.savez(path, X=values)
    return path


def read(path):
    return torch.cat([block for _, block in as_row_stream(path).blocks()])


def damaged(whole):
    """Yield a file cut short, and with bytes changed."""
    rng = np.random.default_rng(0)
    yield from (b"", b"hello", b"\x00\x05\x16\x07Mac OS X", whole[:-1], whole + b"x")
    for _ in range(100):
        yield whole[: rng.integers(len(whole))]
        content = bytearray(whole)
        for position in rng.integers(0, min(len(whole), 400), rng.integers(1, 4)):
            content[position] = rng.integers(256)
        yield bytes(content)
        content = bytearray(whole)
        content[-rng.integers(1, 300)] = rng.integers(256)
        yield bytes(content)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_named(tmp_path, suffix):
    file = save(tmp_path / f"1{suffix}", X)
    messages = []
    for content in damaged(file.read_bytes()):
        file.write_bytes(content)
        try:
            read(tmp_path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(f"1{suffix}" in text or "NaN, infinity" in text for text in messages)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_unpickled(tmp_path, suffix):
    touched, rows = tmp_path / "touched", tmp_path / "rows"
    rows.mkdir()
    objects = np.empty((2, 2), dtype=object)
    objects[:] = Hostile(touched)
    file = save(rows / f"1{suffix}", objects)
    with pytest.raises(ValueError, match=rf"1{suffix}"):
        read(rows)
    file.write_bytes(pickle.dumps(Hostile(touched)))
    with pytest.raises(ValueError, match=rf"1{suffix}.* is damaged or no array of rows") as caught:
        read(rows)
    assert "unsafe" not in str(caught.value)
    assert not touched.exists()
    np.savez(file.with_suffix(".npz"), objects=objects)
    with pytest.raises(ValueError, match=r"1.npz.*Python objects"):
        read_archive(file.with_suffix(".npz"), ["objects"], what="anything")
    assert not touched.exists()


def test_what_is_no_file_and_what_is_hidden(tmp_path):
    folder(tmp_path, ".npy")
    (tmp_path / "._001.npy").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    np.testing.assert_array_equal(read(tmp_path), X)
    (tmp_path / "zz.npy").mkdir()
    with pytest.raises(ValueError, match=r"zz.npy' is damaged or no array of rows"):
        read(tmp_path)


def changes(file):
    """Yield ways in which a file may change under a fit."""
    whole = file.read_bytes()
    yield lambda: file.write_bytes(whole[:-8])
    yield lambda: file.write_bytes(whole[:100])
    yield lambda: file.write_bytes(b"")
    yield lambda: file.write_bytes(whole[:-1] + b"\x41")
    yield lambda: file.unlink()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("narrowed", [False, True])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, suffix, which, narrowed):
    values = np.random.default_rng(0).normal(size=(3000, 50))
    folder(tmp_path, suffix, values, cuts=[1500])
    stream = as_row_stream(tmp_path)
    if narrowed:
        stream = stream.only(np.arange(0, 3000, 2)).between(2, 1400)
    file = tmp_path / f"001{suffix}"
    change = list(changes(file))[which]
    blocks = stream.blocks(100)
    next(blocks)
    change()  # before the file is opened
    with pytest.raises(ValueError, match=rf"001{suffix}"):
        list(blocks)
    with pytest.raises(ValueError, match=rf"001{suffix}"):
        stream.take(np.array([len(stream) - 1]))


@pytest.mark.parametrize("which", range(5))
def test_a_memory_mapped_file_that_is_cut_short_does_not_end_the_process(tmp_path, which):
    np.save(tmp_path / "0.npy", np.ones((3000, 50)))
    change = list(changes(tmp_path / "0.npy"))[which]
    blocks = as_row_stream(tmp_path).blocks(100)
    next(blocks)
    change()  # while it is mapped
    with pytest.raises(ValueError, match=r"0.npy"):
        list(blocks)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fit_names_the_damaged_file(tmp_path, suffix):
    folder(tmp_path, suffix)
    file = tmp_path / f"031{suffix}"
    file.write_bytes((tmp_path / f"000{suffix}").read_bytes()[:150])
    student = LinearizedKDStudent(solver=Nystrom(9, random_state=0))
    with pytest.raises(ValueError, match=rf"031{suffix}' is damaged"):
        student.fit(tmp_path, np.arange(100) % 2, teacher_logits=np.full(100, 0.5))
