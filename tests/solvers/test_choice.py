"""The choice of a solver: planned from shapes alone, and never an approximation by itself."""

import time

import pytest
import torch

from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.solvers._choice import SOLVERS, Options, Size, choose_solver


def size(n_rows):
    return Size(n_rows, 50, 1, torch.float64, torch.device("cpu"))


def test_a_million_rows_are_refused_within_milliseconds():
    options = Options(memory_limit=16 * 2**30)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with pytest.raises(MemoryBudgetError, match=r"fit with solver='cholesky' needs 7.2.. TiB"):
            choose_solver("cholesky", size(10**6), options, what="fit")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


def test_auto_never_approximates():
    options = Options(memory_limit=16 * 2**30)
    assert choose_solver("auto", size(10_000), options, what="fit") == "cholesky"
    with pytest.raises(MemoryBudgetError, match=r"solver='nystrom' \(an approximation\)"):
        choose_solver("auto", size(10**6), options, what="fit")
    assert choose_solver("nystrom", size(10**6), options, what="fit") == "nystrom"


def test_only_a_pass_over_the_rows_takes_streams():
    assert [name for name, solver in SOLVERS.items() if solver.takes_streams] == ["nystrom"]
