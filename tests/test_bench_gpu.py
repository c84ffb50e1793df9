"""The benchmark of a GPU from end to end, on a pretended one: its times mean nothing here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from pretend_cuda import PretendCuda

from sklearn_kd.solvers._frame_cache import frames

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench_gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("bench_gpu", FOLDER / "bench_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_quick(bench_gpu, monkeypatch, tmp_path):
    path = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--quick", "--json", str(path)])
    frames.clear()
    with PretendCuda() as gpu:
        assert bench_gpu.main() == 0
        assert frames.n_frames == 0  # nothing is timed with a frame that was kept
    assert gpu.total.launches > 1000
    found = json.loads(path.read_text())
    assert max(found["differences"].values()) < 1e-9
    for name in ("pcg, float32, matrix in memory", "nystrom, 100 landmarks"):
        assert found[name]["peak bytes"] <= found[name]["planned bytes"]
    assert found["pcg, float32, matrix evaluated"]["iterations"] <= 5
