"""What the tests of solvers share."""

import pytest

import sklearn_kd.solvers._pass


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 32 rows instead of tens of thousands."""
    monkeypatch.setattr(sklearn_kd.solvers._pass, "block_rows", lambda n_landmarks: 32)
