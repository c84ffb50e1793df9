"""Running sums by blocks: against `cumsum`, and as CUDA has to compute them."""

import pytest
import torch
from pretend_cuda import PretendCuda
from process_state import deterministic

from sklearn_kd.linalg._running_sum import running_sum, sum_by_blocks


@pytest.mark.parametrize("shape", [(1,), (256,), (257,), (3, 1000), (2, 3, 70_000)])
def test_sums_by_blocks(shape):
    values = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(0))
    torch.testing.assert_close(sum_by_blocks(values), values.cumsum(-1), rtol=1e-12, atol=1e-11)


def test_rounding_grows_slowly():
    values = torch.rand(2**17, generator=torch.manual_seed(0))
    exact = values.double().cumsum(0)
    relative = ((sum_by_blocks(values) - exact) / exact).abs().amax()
    assert relative < 20 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dim", [0, 1])
def test_where_determinism_is_asked_for(dim):
    values = torch.randn(300, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    with deterministic(), PretendCuda():
        moved = values.cuda()
        with pytest.raises(RuntimeError, match="deterministic"):
            moved.cumsum(dim)
        found = running_sum(moved, dim).cpu()
    torch.testing.assert_close(found, values.cumsum(dim), rtol=1e-12, atol=1e-12)
