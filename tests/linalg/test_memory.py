"""The memory planner."""

import psutil
import pytest
import torch

from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.linalg import _memory

CPU = torch.device("cpu")


def test_plan_is_dominated_by_the_factor():
    planned = _memory.frame_bytes(10_000, 100, 1, torch.float64)
    assert 8e8 < planned < 8.9e8
    assert _memory.frame_bytes(10_000, 100, 1, torch.float32) < 0.6 * planned


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
    assert "7.277 TiB" in message
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
