"""What the package does on a GPU, shown on one that is pretended: see `pretend_cuda`."""

import numpy as np
import pytest
from gpu_cases import CASES, flat
from pretend_cuda import PretendCuda

from sklearn_kd.solvers._frame_cache import frames

# PyTorch's attention on a CPU takes another kernel while operations are watched.
ROUNDED_OTHERWISE = {"empirical kernel attention", "torch teacher attention"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_entry_point_agrees_with_the_cpu(name):
    frames.clear()
    expected = flat(CASES[name]("cpu"))
    frames.clear()
    with PretendCuda() as gpu:
        found = flat(CASES[name]("cuda"))
        frames.clear()
    assert gpu.total.launches > 0
    # Sums over the fitted rows are split otherwise on a GPU.
    tolerance = 1e-4 if "float32" in name else 1e-6 if name in ROUNDED_OTHERWISE else 1e-12
    for one, other in zip(found, expected, strict=True):
        if other.dtype.kind in "fc":
            scale = np.abs(other[np.isfinite(other)]).max(initial=0)
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(one, other)
