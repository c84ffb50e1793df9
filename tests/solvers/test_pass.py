"""The pass over a stream: sources, grids, choice of landmarks, interruption, memory, gaps."""

import errno
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import torch

import sklearn_kd.solvers._pass
from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import effective_logits
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.rows._streams import as_row_stream
from sklearn_kd.solvers._checkpoint import Checkpoint, Fingerprint
from sklearn_kd.solvers._pass import (
    LandmarkChoice,
    PassOptions,
    leave_one_out_blocks,
    nystrom_pass,
    nystrom_student,
    solve_pass,
)
from sklearn_kd.solvers._rows_and_targets import StreamedRows

KERNEL = NTK(depth=2)
METHODS = ["rpcholesky", "uniform"]


def problem(n=300, d=8, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, torch.as_tensor(np.sin(X[:, :3, None] * [1.0, 2.0]))


def student(
    X, targets, *, seed=0, n_landmarks=60, landmarks="rpcholesky", weights=None, ridge=0.0,
    checkpoint=None, kernel=KERNEL, dtype=torch.float64,
):  # fmt: skip
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows], weights)
    return nystrom_student(
        kernel.to_torch(),
        rows,
        LandmarkChoice(n_landmarks, landmarks, seed),
        ridge=ridge,
        dtype=dtype,
        options=PassOptions(checkpoint=checkpoint),
    )


def logits(fitted, X):
    cross = torch.as_tensor(KERNEL(X, fitted.landmarks.numpy()))
    return torch.tensordot(cross, fitted.coefficients, 1)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 32 rows instead of tens of thousands."""
    monkeypatch.setattr(sklearn_kd.solvers._pass, "block_rows", lambda n_landmarks: 32)


def folder(path, X, suffix):
    for i, part in enumerate(np.split(X, [64, 65, 200])):
        name = path / f"{i}{suffix}"
        np.save(name, part) if suffix == ".npy" else np.savez(name, X=part)
    return path


def memory_map(path, X, mode="w+"):
    out = np.memmap(path / "rows", dtype=X.dtype, mode=mode, shape=X.shape)
    out[:] = X
    return out


SOURCES = {
    "memmap": memory_map,
    "npy": lambda path, X: folder(path, X, ".npy"),
    "npz": lambda path, X: folder(path, X, ".npz"),
    "dask": lambda path, X: pytest.importorskip("dask.array").from_array(X, chunks=(70, 3)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_student(tmp_path, small_blocks, source):
    X, targets = problem()
    expected = student(X, targets)
    found = student(SOURCES[source](tmp_path, X), targets)
    torch.testing.assert_close(found.landmarks, expected.landmarks, rtol=0, atol=0)
    new = problem(seed=1)[0]
    np.testing.assert_allclose(logits(found, new), logits(expected, new), rtol=0, atol=1e-10)


def test_all_rows_as_landmarks_give_the_student_of_a_whole_grid(small_blocks):
    rng = np.random.default_rng(0)
    X, y, z_t = rng.normal(size=(200, 10)), rng.integers(0, 2, 200), 3 * rng.normal(size=200)
    X_new = rng.normal(size=(40, 10))
    grid = [(rho, T) for rho in (0.3, 0.9, 1.0) for T in (1.0, 5.0)]
    targets = [effective_logits(z_t, y, soft_ratio=rho, temperature=T) for rho, T in grid]
    fitted = student(X, torch.as_tensor(np.stack(targets, axis=1)), n_landmarks=500)
    assert fitted.report.n_landmarks == 200
    assert fitted.report.captured_trace == pytest.approx(1)
    assert fitted.report.held_out_gap is None
    for column, (rho, T) in enumerate(grid):
        exact = LinearizedKDStudent(kernel=KERNEL, soft_ratio=rho, temperature=T)
        exact.fit(X, y, teacher_logits=z_t)
        found = logits(fitted, X_new)[:, column]
        np.testing.assert_allclose(found, exact.decision_function(X_new), rtol=0, atol=1e-8)


@pytest.mark.parametrize("landmarks", METHODS)
def test_error_falls_with_the_number_of_landmarks(landmarks):
    X, targets = problem(n=400, d=4)
    X_new = problem(n=100, d=4, seed=1)[0]
    frame = TangentFrame(KERNEL.to_torch(), torch.as_tensor(X))
    exact = torch.tensordot(torch.as_tensor(KERNEL(X_new, X)), frame.solve(targets), 1)
    errors, traces = [], []
    for n_landmarks in (10, 30, 100, 250, 400):
        fits = [
            student(X, targets, n_landmarks=n_landmarks, landmarks=landmarks, seed=seed)
            for seed in range(5)
        ]
        gaps = [(logits(fit, X_new) - exact).square().mean().sqrt() for fit in fits]
        errors.append(np.median(gaps))
        traces.append(np.median([fit.report.captured_trace for fit in fits]))
    assert (np.diff(errors) < 0).all()
    assert (np.diff(traces) > 0).all()
    assert errors[-1] < 1e-8


def test_rpcholesky_explains_more_than_uniform_landmarks():
    X = np.vstack([problem(n=290)[0] * 0.01, problem(n=10, seed=1)[0] * 5])
    targets = problem()[1]
    shares = [
        np.median(
            [student(X, targets, n_landmarks=15, landmarks=c, seed=s).report.captured_trace
             for s in range(5)]
        )
        for c in METHODS
    ]  # fmt: skip
    assert shares[0] > shares[1]


@pytest.mark.parametrize("landmarks", METHODS)
def test_copies_are_never_two_landmarks(landmarks):
    X, targets = problem()
    X[40:] = X[np.arange(260) % 40]
    fitted = student(X, targets, n_landmarks=30, landmarks=landmarks)
    assert len(np.unique(fitted.landmarks.numpy(), axis=0)) == 30
    assert fitted.report.n_landmarks == 30
    assert student(X, targets, n_landmarks=60, landmarks=landmarks).report.n_landmarks == 40


def test_rows_of_weight_zero_do_not_count():
    X, targets = problem()
    weights = torch.ones(300).double()
    weights[::2] = 0
    X[::2] += 100
    fitted = student(X, targets, n_landmarks=500, weights=weights)
    np.testing.assert_array_equal(fitted.landmarks, X[1::2])
    exact = student(X[1::2], targets[1::2], n_landmarks=500)
    np.testing.assert_allclose(fitted.coefficients, exact.coefficients, rtol=1e-10)


def test_the_same_random_state_gives_the_same_student():
    X, targets = problem()
    a, b, c = (student(X, targets, seed=seed) for seed in (3, 3, 4))
    assert (a.coefficients == b.coefficients).all()
    assert not (a.landmarks == c.landmarks).all()


def test_gaps_are_root_mean_squares_over_rows():
    X, targets = problem()
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows])
    fitted = student(X, targets)
    residual = targets - logits(fitted, X)
    expected = residual.square().mean(dim=0).sqrt()
    np.testing.assert_allclose(fitted.report.fit_gap, expected, rtol=1e-9)
    loo = torch.cat([values for _, values in leave_one_out_blocks(fitted.solution, rows)])
    assert loo.shape == targets.shape
    expected = (targets - loo).square().mean(dim=0).sqrt()
    np.testing.assert_allclose(fitted.report.held_out_gap, expected, rtol=1e-9)
    assert (fitted.report.held_out_gap > fitted.report.fit_gap).all()


def test_leave_one_out_over_blocks_equals_refits(small_blocks):
    X, targets = problem(n=100)
    weights = torch.linspace(0.5, 2, 100).double()
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows], weights)
    done = nystrom_pass(KERNEL.to_torch(), rows, LandmarkChoice(20, random_state=0))
    solution = solve_pass(done, ridge=0.1).solution
    loo = torch.cat([values for _, values in leave_one_out_blocks(solution, rows)])
    Z = done.basis.landmarks.numpy()
    features, penalty = KERNEL(X, Z), 0.1 * KERNEL(Z)
    for i in (0, 33, 99):
        kept = np.arange(100) != i
        A = features[kept].T * weights[kept].numpy()
        right = A @ targets[kept].reshape(99, -1).numpy()
        b = np.linalg.solve(A @ features[kept] + penalty, right)
        np.testing.assert_allclose(loo[i].ravel(), features[i] @ b, rtol=1e-7, atol=1e-9)


def test_one_pass_serves_every_ridge():
    X, targets = problem()
    rows = StreamedRows(as_row_stream(X), lambda rows: targets[rows])
    done = nystrom_pass(KERNEL.to_torch(), rows, LandmarkChoice(60, random_state=0))
    for ridge in (0.0, 1.0, 0.01):
        expected = student(X, targets, ridge=ridge).coefficients
        torch.testing.assert_close(solve_pass(done, ridge).coefficients, expected)


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


def test_every_source_has_the_same_digest_however_it_is_read(tmp_path):
    X, _ = problem()
    expected = as_row_stream(X).digest(torch.float64)
    assert as_row_stream(X).digest(torch.float32) != expected
    for name, source in SOURCES.items():
        (tmp_path / name).mkdir()
        stream = as_row_stream(source(tmp_path / name, X))
        kept = np.arange(0, 300, 2)
        unread = stream.only(kept).digest(torch.float64)
        assert stream.digest(torch.float64) == expected
        changed = X.copy()
        changed[1] += 1  # is not among those that are kept
        other = as_row_stream(changed)
        assert other.digest(torch.float64) != expected
        assert other.only(kept).digest(torch.float64) != stream.only(kept).digest(torch.float64)
        assert unread == as_row_stream(X[kept]).digest(torch.float64)


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
    np.savez(file, allow_pickle=True, **dict.fromkeys(names, objects))


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


def test_the_memory_plan_comes_before_anything_is_read():
    class Unread:
        n_rows, n_features = 10**7, 50

    rows = StreamedRows(Unread(), lambda rows: torch.zeros(1, 32))
    with pytest.raises(MemoryBudgetError, match=r"n_landmarks=20000 landmarks.*smaller n_land"):
        nystrom_pass(
            KERNEL.to_torch(),
            rows,
            LandmarkChoice(20_000, random_state=0),
            options=PassOptions(memory_limit=2**30),
        )
