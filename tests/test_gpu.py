"""What the package does on a GPU, shown on one that is pretended: see `pretend_cuda`."""

import numpy as np
import pytest
import torch
from gpu_cases import CASES
from pretend_cuda import PretendCuda

from sklearn_kd.solvers._frame_cache import frames

# PyTorch's attention on a CPU takes another kernel while operations are watched.
ROUNDED_OTHERWISE = {"empirical kernel attention", "torch teacher attention"}


def flat(found):
    """Return the numbers that a case returned, as arrays on the host."""
    if isinstance(found, (list, tuple)):
        return [array for part in found for array in flat(part)]
    return [found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)]


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
    tolerance = 1e-6 if name in ROUNDED_OTHERWISE else 1e-12
    for one, other in zip(found, expected, strict=True):
        if other.dtype.kind in "fc":
            scale = np.abs(other[np.isfinite(other)]).max(initial=0)
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(one, other)
