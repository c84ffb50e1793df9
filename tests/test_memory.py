"""The memory planner."""

import functools
import subprocess
import sys
import time

import joblib
import numpy as np
import psutil
import pytest
import torch

from sklearn_kd import _memory
from sklearn_kd.exceptions import MemoryBudgetError
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.search._by_factor import search_bytes
from sklearn_kd.students._prefix_path import path_bytes

CPU = torch.device("cpu")


def test_plan_is_dominated_by_the_factor():
    planned = frame_bytes(10_000, 100, 1, torch.float64)
    assert 8e8 < planned < 8.9e8
    assert frame_bytes(10_000, 100, 1, torch.float32) < 0.6 * planned


def test_searches_and_paths_are_planned_by_their_matrices():
    n, entry = 10_000, 8
    common = {"folds": 5 * [2000], "refit": True}
    plan = functools.partial(search_bytes, n, 100, 32, torch.float64, CPU)

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
    path = functools.partial(path_bytes, n, 100, 32, 500, dtype=torch.float64, device=CPU)
    assert matrices(path(n_orders=0, n_drawn=0, builds_frame=False)) < 0.3
    assert matrices(path(n_orders=0, n_drawn=0, builds_frame=True)) == pytest.approx(1, abs=0.4)
    assert matrices(path(n_orders=2, n_drawn=0, builds_frame=True)) == pytest.approx(1, abs=0.4)
    drawn = path(n_orders=2, n_drawn=n, builds_frame=True)
    assert matrices(drawn) == pytest.approx(2, abs=0.4)


def test_too_large_a_plan_names_bytes_and_remedy():
    with pytest.raises(MemoryBudgetError) as caught:
        _memory.require(
            frame_bytes(10**6, 100, 1, torch.float64),
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


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Fake /proc/self of a process in the nested group /a/b of a version 2 tree."""
    folder, tree = tmp_path / "proc", tmp_path / "tree"
    write(folder, cgroup="3:cpu:/x\n0::/a/b", mountinfo=f"1 2 0:3 / {tree} rw - cgroup2 none rw")
    (tree / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(_memory, "_PROC", folder)
    return folder


def free():
    return psutil.virtual_memory().available


def test_auto_is_what_is_free_within_the_container(proc, tmp_path):
    assert _memory.available_bytes(CPU) == pytest.approx(free(), rel=0.2)
    write(tmp_path / "tree", memory_current=1000, memory_max="max")
    assert _memory.available_bytes(CPU) == pytest.approx(free(), rel=0.2)
    write(tmp_path / "tree", memory_max=5000)
    assert _memory.available_bytes(CPU) == 4000
    assert _memory.budget_bytes("auto", CPU) == 3600


def test_the_tightest_of_nested_groups_wins(proc, tmp_path):
    write(tmp_path / "tree", memory_current=1000, memory_max=9000)
    write(tmp_path / "tree" / "a", memory_current=700, memory_max=3000)
    write(tmp_path / "tree" / "a" / "b", memory_current=500, memory_max="max")
    assert _memory.available_bytes(CPU) == 2300
    write(tmp_path / "tree" / "a" / "b", memory_current=500, memory_high=1500, memory_max="max")
    assert _memory.available_bytes(CPU) == 1000
    write(tmp_path / "tree" / "a" / "b", memory_current=5000)
    assert _memory.available_bytes(CPU) == 0


def test_page_cache_is_not_used_memory(proc, tmp_path):
    group = tmp_path / "tree" / "a"
    write(group, memory_current=1_048_100_864, memory_max=1_048_576_000)
    assert _memory.available_bytes(CPU) == 475_136
    caches = "anon 300000000\ninactive_file 700000000\nactive_file 30000000\nslab_reclaimable 1000"
    write(group, memory_stat=caches + "\nshmem 5000000")
    assert _memory.available_bytes(CPU) == 475_136 + 730_001_000
    write(group, memory_stat="inactive_file 9000000000")
    assert _memory.available_bytes(CPU) == 1_048_576_000


@pytest.mark.parametrize("root", ["/", "/docker/1", "/other"])
def test_version_1_and_containers_that_see_a_part_of_the_tree(tmp_path, monkeypatch, root):
    tree, unlimited = tmp_path / "memory", 2**63 - 4096
    mounts = f"1 2 0:3 / {tmp_path} rw - cgroup cgroup rw,cpu\n"
    mounts += f"1 2 0:3 {root} {tree} rw - cgroup cgroup rw,memory\nno - tmpfs tmpfs rw"
    write(tmp_path / "proc", cgroup="4:memory:/docker/1/job\n0::/", mountinfo=mounts)
    monkeypatch.setattr(_memory, "_PROC", tmp_path / "proc")
    folders = {"/": tree / "docker/1/job", "/docker/1": tree / "job", "/other": tree}
    write(tree, memory_limit_in_bytes=unlimited, memory_usage_in_bytes=10**9)
    write(
        folders[root],
        memory_limit_in_bytes=9000,
        memory_usage_in_bytes=8000,
        memory_stat="inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 1500",
    )
    assert _memory.available_bytes(CPU) == 3000


def test_never_more_than_any_limit(proc, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(50):
        limits = rng.integers(0, 10**9, 3).tolist()
        for folder, limit in zip(("", "a", "a/b"), limits, strict=True):
            stat = f"inactive_file {rng.integers(10**9)}"
            used = rng.integers(2 * 10**9)
            write(tmp_path / "tree" / folder, memory_max=limit, memory_current=used)
            write(tmp_path / "tree" / folder, memory_stat=stat)
        assert 0 <= _memory.available_bytes(CPU) <= min(*limits, free())


def test_without_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "_PROC", tmp_path / "nothing")
    monkeypatch.setattr(_memory, "resource", None)
    assert _memory.available_bytes(CPU) == pytest.approx(free(), rel=0.2)


def test_limit_of_the_address_space():
    code = """
import psutil, resource, torch
from sklearn_kd._memory import available_bytes
limit = psutil.Process().memory_info().vms + 10**9
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(available_bytes(torch.device("cpu")))
"""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.9e9 < int(done.stdout) <= 1e9


def share(seconds):
    time.sleep(seconds)  # so that every worker has a task
    return _memory._n_sharing(), _memory.budget_bytes("auto", CPU)


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_workers_of_a_pool_share_what_is_free(backend):
    before = free()
    with joblib.parallel_config(backend=backend, n_jobs=3):
        shares = joblib.Parallel()(joblib.delayed(share)(0.5) for _ in range(3))
    assert [count for count, _ in shares] == [3, 3, 3]
    assert sum(budget for _, budget in shares) <= before
    assert _memory._n_sharing() == 1


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (2048, "2 KiB"), (3e12, "2.728 TiB")])
def test_format_bytes(count, text):
    assert _memory.format_bytes(count) == text
