"""The memory planner."""

import functools

import psutil
import pytest
import torch

from sklearn_kd import _memory
from sklearn_kd.exceptions import MemoryBudgetError

CPU = torch.device("cpu")


def test_plan_is_dominated_by_the_factor():
    planned = _memory.frame_bytes(10_000, 100, 1, torch.float64)
    assert 8e8 < planned < 8.9e8
    assert _memory.frame_bytes(10_000, 100, 1, torch.float32) < 0.6 * planned


def test_searches_and_paths_are_planned_by_their_matrices():
    n, entry = 10_000, 8
    common = {"folds": 5 * [2000], "refit": True}
    plan = functools.partial(_memory.search_bytes, n, 100, 32, torch.float64, CPU)

    def matrices(planned):
        return planned / (n**2 * entry)

    loo = plan(folds=[], by_factors=False, keeps_matrix=False, refit=True)
    assert matrices(loo) == pytest.approx(1, abs=0.2)
    blocks = plan(**common, by_factors=False, keeps_matrix=False)
    assert matrices(blocks) == pytest.approx(1 + 0.2 + 3 * 0.04, abs=0.2)
    ridges = plan(**common, by_factors=False, keeps_matrix=True)
    assert matrices(ridges - blocks) == pytest.approx(1)
    factors = plan(**common, by_factors=True, keeps_matrix=True)
    assert matrices(factors) == pytest.approx(2, abs=0.2)
    factors = plan(folds=5 * [2000], by_factors=True, keeps_matrix=True, refit=False)
    assert matrices(factors) == pytest.approx(1 + 0.64, abs=0.2)
    path = functools.partial(_memory.path_bytes, n, 100, 32, 500, dtype=torch.float64, device=CPU)
    assert matrices(path(n_orders=0)) < 0.3
    assert matrices(path(n_orders=2)) == pytest.approx(1, abs=0.4)


def test_too_large_a_plan_names_bytes_and_remedy():
    with pytest.raises(MemoryBudgetError) as caught:
        _memory.require(
            _memory.frame_bytes(10**6, 100, 1, torch.float64),
            "auto",
            CPU,
            what="Fitting n=1000000 rows",
            remedy="Use fewer rows.",
        )
    message = str(caught.value)
    assert "n=1000000" in message
    assert "7.278 TiB" in message
    assert "Use fewer rows." in message


def test_explicit_limit_is_taken_as_given():
    _memory.require(1000, 1000, CPU, what="", remedy="")
    with pytest.raises(MemoryBudgetError, match=r"needs 1001 bytes .* allows 1000 bytes"):
        _memory.require(1001, 1000, CPU, what="It", remedy="")


def test_auto_is_what_is_free_within_the_container(tmp_path, monkeypatch):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(_memory, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(_memory, "_CGROUP_USED", used)
    free = psutil.virtual_memory().available
    assert _memory.available_bytes(CPU) == pytest.approx(free, rel=0.2)
    used.write_text("1000")
    limit.write_text("max\n")
    assert _memory.available_bytes(CPU) == pytest.approx(free, rel=0.2)
    limit.write_text("5000\n")
    assert _memory.available_bytes(CPU) == 4000
    assert _memory.budget_bytes("auto", CPU) == 3600


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (2048, "2 KiB"), (3e12, "2.728 TiB")])
def test_format_bytes(count, text):
    assert _memory.format_bytes(count) == text
