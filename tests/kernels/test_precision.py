"""Float32 products stay in full precision, and the user's setting comes back."""

import subprocess
import sys
import textwrap

import pytest
import torch

LEGACY = """
    torch.set_float32_matmul_precision("medium")
    state = lambda: (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
"""
PER_BACKEND = """
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    state = lambda: (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.mkldnn.conv.fp32_precision,
    )
"""


HAS_PER_BACKEND = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9 and later


@pytest.mark.parametrize(
    "setting",
    [
        LEGACY,
        pytest.param(
            PER_BACKEND,
            marks=pytest.mark.skipif(not HAS_PER_BACKEND, reason="torch has one setting for all"),
        ),
    ],
    ids=["legacy", "per-backend"],
)
def test_setting_is_switched_off_and_restored(setting):
    # in a process of its own: the setting is global
    script = """
    import warnings
    warnings.simplefilter("error")
    import torch
    from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
    from sklearn_kd.kernels._precision import full_precision
    X = torch.rand(300, 200)
    expected = InfiniteKernel().gram(X)
    product = X @ X.T
    SETTING
    before = state()
    with full_precision():
        assert torch.equal(X @ X.T, product)
        if hasattr(torch.backends.cudnn, "conv"):
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert state() == before
    assert torch.equal(InfiniteKernel().gram(X), expected)
    try:
        with full_precision():
            raise KeyError
    except KeyError:
        assert state() == before
    """
    script = textwrap.dedent(script).replace("SETTING", textwrap.dedent(setting))
    subprocess.run([sys.executable, "-c", script], check=True)


def test_overlapping_threads_restore_the_setting():
    # in a process of its own: the setting is global
    script = """
    import torch
    from sklearn_kd.kernels._precision import full_precision
    torch.set_float32_matmul_precision("high")
    # Enter, enter, leave, leave in the order in which two threads may.
    first, second = full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "high"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
