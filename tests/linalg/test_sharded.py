"""Two and three gloo processes against one."""

import numpy as np
import process_groups
import psutil
import pytest
import torch

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.exceptions import NotPSDError
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._operator import TiledOperator, tile_entries, tile_side
from sklearn_kd.linalg._sharded import largest_share, shares
from sklearn_kd.solvers import PCG, Cholesky, Nystrom, Refinement

CPU = torch.device("cpu")

# Of the student: to the default tolerance, where any other rounding would show.
OPTIONS = [{}, {"tol": 1e-10, "ridge": 0.1}, {"dtype": "float32"}, {"memory_limit": "little"}]


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes: matrix products on two threads are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check_products(results, n_rows):
    X = torch.as_tensor(process_groups.problem(n_rows)[0])
    V = torch.as_tensor(np.random.default_rng(1).normal(size=(n_rows, 5)))
    operator = TiledOperator(InfiniteKernel(depth=2), X)
    single = TiledOperator(operator.kernel, X.float())
    indices = torch.tensor([0, n_rows - 1])
    expected = [operator.matmat(V)] * 3 + [single.matmat(V.float())]
    expected += [operator.diag(), operator.columns(indices)]
    for found in results:
        for actual, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(actual, alone.numpy())


def check_students(results, n_rows):
    X, y, logits = process_groups.problem(n_rows)
    for options, found in zip(OPTIONS, zip(*results, strict=True), strict=True):
        alone = process_groups.student(n_rows, options).fit(X, y, teacher_logits=logits)
        for logits_new, dual_coef, n_iter, report in found:
            assert report.residual <= options.get("tol", 1e-6)
            # the same in every process as in one alone, bit for bit
            np.testing.assert_array_equal(logits_new, alone.decision_function(1.1 * X))
            np.testing.assert_array_equal(dual_coef, alone.dual_coef_)
            assert n_iter == alone.n_iter_
            assert report.products.endswith(alone.fit_report_.products[-7:])


def test_two_processes_equal_one(tmp_path):
    n_rows = 301
    results = process_groups.run(
        process_groups.several,
        2,
        tmp_path,
        (process_groups.products, n_rows),
        (process_groups.students, n_rows, OPTIONS),
        (process_groups.not_converged,),
        (process_groups.memory_of_each,),
        (process_groups.fails_in_process_0,),
        (process_groups.other_data, "rows"),
        (process_groups.other_data, "number of rows"),
        (process_groups.other_data, "teacher"),
    )
    products, students, unconverged, memory, failed, *others = zip(*results, strict=True)
    rows, number, teacher = others
    check_products(products, n_rows)
    check_students(students, n_rows)
    for messages in unconverged:
        assert len(messages) == 1
        assert "max_iter=2 iterations were not enough" in messages[0]
    assert memory[0] == memory[1]
    assert memory[0] <= 0.5 * psutil.virtual_memory().total
    for error in failed:
        assert isinstance(error, NotPSDError)
        assert str(error) == "found in process 0"
    for error in (*rows, *number):
        assert isinstance(error, ValueError)
        assert "the same rows and classes in every process" in str(error)
    for error in teacher:
        assert isinstance(error, ValueError)
        assert "random_state" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [2, 299, 1000])
def test_three_processes_equal_one(tmp_path, n_rows):
    results = process_groups.run(
        process_groups.several,
        3,
        tmp_path,
        (process_groups.products, n_rows),
        (process_groups.students, n_rows, OPTIONS if n_rows > 2 else []),
    )
    products, students = zip(*results, strict=True)
    check_products(products, n_rows)
    if n_rows > 2:
        check_students(students, n_rows)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_process_is_an_error_within_the_timeout(tmp_path, victim):
    results = process_groups.run(process_groups.dies_in_a_product, 3, tmp_path, victim, 300)
    assert results.pop(victim) is None
    for name, message, seconds in results:
        assert name == "LostProcessError"
        assert "start all of them again" in message
        assert seconds < process_groups.TIMEOUT_S + 5


@pytest.mark.parametrize("n_shares", [1, 2, 3, 8])
@pytest.mark.parametrize("n_rows", [1, 7, 300, 5000])
def test_every_tile_is_in_one_share_and_shares_are_even(n_rows, n_shares):
    dealt = shares(n_rows, CPU, n_shares)
    assert len(dealt) == n_shares
    counts = [len(share) for share in dealt]
    assert max(counts) - min(counts) <= 1
    covered = np.zeros((n_rows, n_rows), dtype=int)
    for rows, columns in (tile for share in dealt for tile in share):
        covered[rows, columns] += 1
        if rows != columns:
            covered[columns, rows] += 1
    assert (covered == 1).all()
    entries = [sum(map(tile_entries, share)) for share in dealt]
    assert max(entries) <= largest_share(n_rows, CPU, n_shares)
    assert largest_share(n_rows, CPU, n_shares) <= max(entries) + 3 * tile_side(n_rows, CPU) ** 2
    if n_shares == 1:
        assert entries == [largest_share(n_rows, CPU, 1)]


def test_without_a_process_group():
    X, y, logits = process_groups.problem(20)
    with pytest.raises(ValueError, match=r"init_process_group\(\) first, .* torchrun"):
        LinearizedKDStudent(solver=PCG(distributed=True)).fit(X, y, teacher_logits=logits)


def test_only_for_pcg():
    # an option of that solver: the others have none of this name
    for solver in (Cholesky, Refinement, Nystrom):
        with pytest.raises(TypeError, match="distributed"):
            solver(distributed=True)
