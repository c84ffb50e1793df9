"""Warnings that point at the user's line, whatever the number of layers between."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import sklearn
import torch

# Code between a user's call and a warning of ours.
_BETWEEN = (
    str(Path(__file__).parent),
    *(str(Path(inspect.getfile(module)).parent) for module in (sklearn, joblib, torch, futures)),
    *(inspect.getfile(module) for module in (contextlib, functools, threading)),
)


def is_called_by(function: Callable[..., Any]) -> bool:
    """Whether a plain function is among the callers of the caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the user's line: the last one outside of this package and its libraries.

    Examples
    --------
    >>> import warnings
    >>> from sklearn_kd._warnings import warn
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("rounding decides", UserWarning)
    >>> caught[0].filename == __file__
    False
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def said_before() -> Iterator[None]:
    """Be silent about what the fit of all rows has warned of, in further fits of some of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
