"""Checkpoints: resumed passes, one file for each pass, files that cannot be written or read."""

import errno
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import torch
from restricted_students import KERNEL, folder, problem, student

from sklearn_kd.kernels import NTK
from sklearn_kd.solvers._checkpoint import Checkpoint, Fingerprint
from sklearn_kd.solvers._pass import LandmarkChoice, PassOptions, nystrom_pass
from sklearn_kd.solvers._rows_and_targets import StreamedRows


class Interrupted:
    """Targets that raise KeyboardInterrupt at a row."""

    def __init__(self, targets, at_row):
        self.targets, self.at_row = targets, at_row

    def __getitem__(self, rows):
        if isinstance(rows, slice) and rows.start >= self.at_row:
            raise KeyboardInterrupt
        return self.targets[rows]


def interrupt(checkpoint, at_row=150, **options):
    X, targets = problem()
    with pytest.raises(KeyboardInterrupt):
        student(X, Interrupted(targets, at_row), checkpoint=checkpoint, **options)


@pytest.mark.parametrize("at_row", [32, 161, 296])
@pytest.mark.parametrize("weighted", [False, True])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, small_blocks, at_row, weighted):
    X, targets = problem()
    (tmp_path / "rows").mkdir()
    X = folder(tmp_path / "rows", X, ".npy")
    weights = torch.linspace(0, 2, 300).double() if weighted else None
    expected = student(X, targets, weights=weights)
    checkpoint = Checkpoint(tmp_path / "pass.npz", seconds=0)
    with pytest.raises(KeyboardInterrupt):
        student(X, Interrupted(targets, at_row), weights=weights, checkpoint=checkpoint)
    resumed = student(X, targets, weights=weights, checkpoint=checkpoint)
    assert resumed.report.resumed_at_row == at_row
    torch.testing.assert_close(resumed.coefficients, expected.coefficients, rtol=0, atol=1e-12)
    np.testing.assert_allclose(resumed.report.fit_gap, expected.report.fit_gap, atol=1e-12)
    assert resumed.report.captured_trace == pytest.approx(expected.report.captured_trace)
    assert len(list(tmp_path.glob("pass-*.npz"))) == 1
    # A finished pass is not made again, until the caller has no use for it any more.
    again = student(X, targets, weights=weights, checkpoint=checkpoint)
    assert again.report.resumed_at_row == 300
    torch.testing.assert_close(again.coefficients, resumed.coefficients, rtol=0, atol=0)
    checkpoint.remove()
    assert not list(tmp_path.glob("pass*"))


def test_without_a_random_state_any_landmarks_will_do(tmp_path, small_blocks):
    checkpoint = Checkpoint(tmp_path / "pass.npz", seconds=0)
    interrupt(checkpoint, seed=None)
    interrupt(checkpoint, seed=np.random.RandomState(3))
    for seed in (None, np.random.RandomState(3)):
        resumed = student(*problem(), seed=seed, checkpoint=checkpoint)
        assert resumed.report.resumed_at_row == 160


def test_any_draw_stands_for_every_random_state():
    seeds = {LandmarkChoice(9, random_state=state, any_draw=True).seed for state in (None, 0, 7)}
    assert len(seeds) == 1
    drawn = {LandmarkChoice(9, random_state=state).seed for state in (None, 0, 7)}
    assert len(drawn) == 3


def other_passes():
    """Return (what differs, arguments, options) of passes that are not ``problem()``'s."""
    X, targets = problem()
    row, labels, ones = X.copy(), targets.clone(), torch.ones(300).double()
    row[217, 4] *= -3
    labels[218, 1, 1] += 0.01
    weights = ones.clone()
    weights[219] += 0.01
    return [
        ("number of rows", (X[:290], targets), {}),
        ("n_landmarks", (X, targets), {"n_landmarks": 61}),
        ("landmarks", (X, targets), {"landmarks": "uniform"}),
        ("random_state", (X, targets), {"seed": 1}),
        ("random_state", (X, targets), {"seed": np.random.RandomState(0)}),
        ("rows", (X + 1, targets), {}),
        ("rows", (row, targets), {}),
        ("rows", (-X, targets), {}),
        ("targets", (X, 2 * targets), {}),
        ("targets", (X, labels), {}),
        ("number of targets", (X, targets[:, :1]), {}),
        ("sample weights", (X, targets), {"weights": ones}),
        ("sample weights", (X, targets), {"weights": weights}),
        ("dtype", (X, targets), {"dtype": torch.float32}),
        ("kernel", (X, targets), {"kernel": NTK(depth=3)}),
    ]


def test_a_checkpoint_of_another_pass_is_refused(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(Fingerprint, "digits", lambda self: "00000000")  # all of them meet
    checkpoint = Checkpoint(tmp_path / "pass.npz", seconds=0)
    interrupt(checkpoint)
    for what, arguments, options in other_passes():
        with pytest.raises(ValueError, match=f"pass-0*.npz.*another .*{what}.*; delete it"):
            student(*arguments, checkpoint=checkpoint, **options)
    weights = torch.ones(300).double()
    checkpoint.remove()
    interrupt(checkpoint, weights=weights)
    weights[219] += 0.01
    with pytest.raises(ValueError, match="another sample weights"):
        student(*problem(), weights=weights, checkpoint=checkpoint)


def test_two_passes_never_share_a_file(tmp_path, small_blocks):
    checkpoint = Checkpoint(tmp_path / "pass.npz", seconds=0)
    interrupt(checkpoint)
    for _, arguments, options in other_passes():
        other = Checkpoint(tmp_path / "pass.npz", seconds=0)
        assert student(*arguments, checkpoint=other, **options).report.resumed_at_row == 0
        assert len(list(tmp_path.iterdir())) == 2
        other.remove()
        assert len(list(tmp_path.iterdir())) == 1
    assert student(*problem(), checkpoint=checkpoint).report.resumed_at_row == 160


def test_rounding_makes_no_other_pass(tmp_path, small_blocks):
    X, targets = problem()
    checkpoint = Checkpoint(tmp_path / "pass.npz", seconds=0)
    interrupt(checkpoint)
    noise = 1 + 1e-15 * torch.as_tensor(np.random.default_rng(0).normal(size=targets.shape))
    resumed = student(X, targets * noise, checkpoint=checkpoint)
    assert resumed.report.resumed_at_row == 160


@pytest.mark.parametrize("path", ["/no/such/folder/pass.npz", "/proc/self/pass.npz", "folder"])
def test_a_checkpoint_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, path):
    class Unread:
        n_rows, n_features = 300, 8

    (tmp_path / "folder").mkdir()
    checkpoint = Checkpoint(tmp_path / path)
    rows = StreamedRows(Unread(), lambda rows: torch.zeros(1, 1))
    options = PassOptions(checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint=.*(folder|self).* cannot be written: .*;"):
        nystrom_pass(KERNEL.to_torch(), rows, LandmarkChoice(60), options=options)


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"checkpoint=.*takes .* but 9\.766 KiB are free"):
        student(*problem(), checkpoint=Checkpoint(tmp_path / "pass.npz"))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_warns_once_and_the_pass_goes_on(tmp_path, small_blocks, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "pass.npz", seconds=0)
    expected = student(*problem())
    write, calls = Checkpoint._write, []

    def full(path, arrays):
        write(path, arrays)
        calls.append(path)
        if 3 < len(calls) < 6:  # the first is the trial
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Checkpoint, "_write", staticmethod(full))
    with pytest.warns(RuntimeWarning, match=r"checkpoint=.*No space left.* goes on") as caught:
        found = student(*problem(), checkpoint=checkpoint)
    assert len(caught) == 1
    assert len(calls) > 6  # it tries again
    assert len(list(tmp_path.iterdir())) == 1
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=0, atol=0)


def test_fits_with_the_same_pass_may_tidy_up_for_each_other(tmp_path, small_blocks, monkeypatch):
    first, second = (Checkpoint(tmp_path / "pass.npz", seconds=0) for _ in range(2))
    write = Checkpoint._write

    def write_and_end_the_other(path, arrays):
        write(path, arrays)
        student(*problem(), checkpoint=first)
        first.remove()

    expected = student(*problem())
    monkeypatch.setattr(Checkpoint, "_write", staticmethod(write_and_end_the_other))
    monkeypatch.setattr(first, "_write", write)
    found = student(*problem(), checkpoint=second)
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=0, atol=1e-12)
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "pass.npz")
    student(*problem(), checkpoint=checkpoint)

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    with pytest.warns(RuntimeWarning, match=r"pass-.*\.npz' is of no use any more; delete it"):
        checkpoint.remove()


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def hostile_archive(file, path, names):
    objects = np.empty(1, dtype=object)
    objects[0] = Hostile(path)
    np.savez(file, **dict.fromkeys(names, objects))


def test_damaged_checkpoints_are_named_and_nothing_is_unpickled(tmp_path, small_blocks):
    checkpoint, touched = Checkpoint(tmp_path / "pass.npz", seconds=0), tmp_path / "touched"
    interrupt(checkpoint)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    with np.load(file) as saved:
        names = saved.files
    np.savez(tmp_path / "foreign.npz", foo=1)
    hostile_archive(tmp_path / "objects.npz", touched, names)
    np.save(tmp_path / "array.npy", np.ones(3))
    damaged = [b"", b"hello", whole[:2000], whole[:-1], pickle.dumps(Hostile(touched))]
    damaged += [path.read_bytes() for path in tmp_path.iterdir() if path != file]
    damaged += [whole[:1000] + b"x" + whole[1001:]]
    assert len(damaged) == 9
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{file.name}' is damaged or no checkpoint"
        ) as caught:
            student(*problem(), checkpoint=checkpoint)
        assert "unsafe" not in str(caught.value)
        assert not touched.exists()


def test_what_a_killed_process_left_unfinished_is_removed_too(tmp_path):
    checkpoint = Checkpoint(tmp_path / "pass.npz")
    (tmp_path / "pass.npz.0a1b2c3d.part").write_bytes(b"a trial")
    (tmp_path / "other.npz.0a1b2c3d.part").write_bytes(b"of someone else")
    (tmp_path / "pass.npz").write_bytes(b"the user's")
    checkpoint.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.npz.0a1b2c3d.part",
        "pass.npz",
    ]
