"""Settings that must be in place before scipy is imported."""

import os
import signal

import pytest

# Array API support is tested throughout; SCIPY_ARRAY_API=0 tests without it, which scikit-learn's
# checks only understand as the variable being absent.
if os.environ.setdefault("SCIPY_ARRAY_API", "1") == "0":
    del os.environ["SCIPY_ARRAY_API"]


@pytest.fixture
def ctrl_c():
    """SIGINT raises `KeyboardInterrupt`, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
