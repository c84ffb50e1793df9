"""`show_versions` prints what a report of a fault needs."""

from importlib.metadata import version

import numpy as np

import sklearn_kd


def test_versions_of_what_is_installed_and_none_for_the_rest(capsys, monkeypatch):
    monkeypatch.setattr("sklearn_kd._show_versions.OPTIONAL", ("a-package-that-is-not-there",))
    assert sklearn_kd.show_versions() is None
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"numpy: {np.__version__}" in lines
    assert f"torch: {version('torch')}" in lines
    assert f"sklearn_kd: {version('sklearn_kd')}" in lines
    assert "a-package-that-is-not-there: None" in lines
    assert [line for line in lines if line.endswith(":")] == [
        "System:",
        "Python dependencies:",
        "Devices:",
        "Thread pools:",
    ]


def test_every_required_package_is_listed():
    from sklearn_kd._show_versions import OPTIONAL, REQUIRED

    assert {"numpy", "scipy", "scikit-learn", "torch", "joblib", "psutil"} <= set(REQUIRED)
    assert "threadpoolctl" in OPTIONAL
