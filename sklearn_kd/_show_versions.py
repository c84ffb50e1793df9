"""What a report of a fault needs: versions, machine, threads."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from threadpoolctl import threadpool_info

REQUIRED = ("sklearn_kd", "scikit-learn", "numpy", "scipy", "torch", "joblib", "psutil")
OPTIONAL = ("threadpoolctl", "matplotlib", "rich", "dask", "skorch", "pandas", "pip", "setuptools")


def show_versions() -> None:
    """Print the versions of Python, of the packages and of their thread pools.

    Paste what it prints into a report of a fault.

    Examples
    --------
    >>> from sklearn_kd import show_versions
    >>> show_versions()
    <BLANKLINE>
    System:
        python: ...
    """
    print("\nSystem:")
    for name, value in _system().items():
        print(f"{name:>14}: {value}")
    print("\nPython dependencies:")
    for name in (*REQUIRED, *OPTIONAL):
        print(f"{name:>14}: {_version_of(name)}")
    print("\nDevices:")
    for name, value in _devices().items():
        print(f"{name:>14}: {value}")
    print("\nThread pools:")
    for pool in threadpool_info():
        print(
            f"{pool['user_api']:>14}: {pool['internal_api']} {pool['version']}, "
            f"{pool['num_threads']} threads"
        )


def _system() -> dict[str, str]:
    return {
        "python": sys.version.replace("\n", " "),
        "executable": sys.executable,
        "machine": platform.platform(),
    }


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"CUDA": cuda, "torch threads": str(torch.get_num_threads())}
