"""Settings of all tests and doctests: figures without a screen, and a GPU that is pretended."""

import os
import sys

import pytest

os.environ["MPLBACKEND"] = "Agg"


def pytest_addoption(parser):
    """Add the option of a pretended GPU."""
    parser.addoption(
        "--pretend-cuda",
        action="store_true",
        help="run on CPU tensors that pretend to be on a CUDA GPU: see tests/pretend_cuda.py",
    )


def pytest_configure(config):
    """Enter the pretended GPU, if asked for."""
    if config.getoption("--pretend-cuda"):
        from pretend_cuda import PretendCuda

        import sklearn_kd  # noqa: F401 (before the factories of torch are replaced)

        config.pretended = PretendCuda()
        config.pretended.__enter__()


def pytest_unconfigure(config):
    """Leave it."""
    if hasattr(config, "pretended"):
        config.pretended.__exit__()


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test drew; matplotlib keeps figures alive, and warns about the 21st."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
