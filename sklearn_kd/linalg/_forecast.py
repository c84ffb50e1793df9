"""How long work will take: what it consists of, and the speed at which a sample of it goes now.

The two kinds of work are entries of the kernel matrix and multiplications, each with an addition.
A factor of n rows takes n³/6 multiplications. A product of an (n, n) matrix with C columns, or a
solve for them, takes n² C, and the time of n² ``READING`` more to read the matrix.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_kd._warnings import warn
from sklearn_kd.exceptions import LongFitWarning
from sklearn_kd.kernels._precision import full_precision
from sklearn_kd.kernels._protocol import KernelFunction

# A fit that takes longer says so before it begins.
LONG_SECONDS = 120.0

# Multiplications in the time in which a number is read from memory.
READING = 30

# Multiplications of an estimated condition number, in units of n².
CONDITION = 330

# No entry and no multiplication takes more seconds: work that is short by these is not measured.
_SLOWEST_ENTRY = 1e-4
_SLOWEST_MULTIPLICATION = 1e-9

# An option is faster if it takes at most this share of the time.
_FASTER = 0.6

# Rows whose kernel matrix is the sample: at most, and as a share of all (its square is 0.5 %).
_MOST_SAMPLED = 1024
_SAMPLED_SHARE = 0.07

# The sample of multiplications: rows, inner and outer columns of a product.
_PRODUCT = (1024, 2048, 512)


# What is always faster, as a warning names it.
HALF = "half of the rows"


class Work(NamedTuple):
    """Work in one dtype."""

    dtype: torch.dtype
    entries: float  # of the kernel matrix
    multiplications: float

    @property
    def only_entries(self) -> Work:
        """The work without its multiplications."""
        return self._replace(multiplications=0.0)

    def times(self, count: float) -> Work:
        """Return this work, done ``count`` times."""
        return Work(self.dtype, count * self.entries, count * self.multiplications)


def product_work(n_rows: float, n_columns: int) -> float:
    """Return the multiplications of a product with a matrix in memory, or of two solves."""
    return n_rows**2 * (n_columns + READING)


def factor_work(n_rows: float) -> float:
    """Return the multiplications of a factor and the estimate of its condition."""
    return n_rows**3 / 6 + CONDITION * n_rows**2


def n_sampled(n_rows: int) -> int:
    """Return the number of rows whose kernel matrix is the sample for that of ``n_rows``."""
    return max(1, min(_MOST_SAMPLED, int(_SAMPLED_SHARE * n_rows)))


class Speed:
    """Seconds that a kernel entry and a multiplication take, measured when first asked for.

    Parameters
    ----------
    kernels : sequence of KernelFunction
        An entry takes their mean time.
    sample : Tensor of shape (m, d)
        Some rows.
    """

    def __init__(self, kernels: Sequence[KernelFunction], sample: Tensor) -> None:
        self._kernels = kernels
        self._sample = sample
        self._measured: dict[tuple[str, torch.dtype], float] = {}

    def seconds(self, works: Iterable[Work]) -> float:
        """Return the seconds that work takes."""
        return sum(
            count * self._unit(kind, work.dtype)
            for work in works
            for kind, count in (
                ("entry", work.entries),
                ("multiplication", work.multiplications),
            )
            if count
        )

    def _unit(self, kind: str, dtype: torch.dtype) -> float:
        key = (kind, dtype)
        if key not in self._measured:
            measure = self._entry if kind == "entry" else self._multiplication
            self._measured[key] = measure(dtype)
        return self._measured[key]

    def _entry(self, dtype: torch.dtype) -> float:
        rows = self._sample.to(dtype)
        n = len(rows)
        out = rows.new_empty(n, n)
        seconds = sum(
            self._seconds_of(functools.partial(kernel.gram, rows, out=out, symmetrize=False))
            for kernel in self._kernels
        )
        return seconds / len(self._kernels) / (n**2 / 2)

    @full_precision()
    def _multiplication(self, dtype: torch.dtype) -> float:
        n, k, p = _PRODUCT
        left = torch.ones((n, k), dtype=dtype, device=self._sample.device)
        right = left.new_ones((k, p))
        return self._seconds_of(lambda: left @ right) / (n * k * p)

    def _seconds_of(self, work: Callable[[], object]) -> float:
        """Return the seconds of some work: the second time, as the first loads libraries."""
        seconds = math.inf
        for _ in range(2):
            start = self._now()
            work()
            seconds = min(seconds, self._now() - start)
        return seconds

    def _now(self) -> float:
        if self._sample.device.type == "cuda":
            torch.cuda.synchronize(self._sample.device)
        return time.perf_counter()


def warn_if_long(
    what: str,
    works: Sequence[Work],
    options: Callable[[], Mapping[str, Sequence[Work]]],
    speed: Callable[[], Speed],
) -> None:
    """Warn with `LongFitWarning` if work takes minutes, and name the options that are faster.

    Parameters
    ----------
    what : str
        The computation, for the message.
    works : sequence of Work
        What it consists of.
    options : callable
        Returns a dict of what it could be replaced by, in words, and what that consists of.
    speed : callable
        Returns the speed. Both are called only if the work could be long on a slow machine.
    """
    # A sample of the kernel takes a share of the time; one of the multiplications does not.
    slowest = _SLOWEST_MULTIPLICATION * sum(work.multiplications for work in works)
    if slowest + _SLOWEST_ENTRY * sum(work.entries for work in works) <= LONG_SECONDS:
        return
    replacements, measured = options(), speed()
    if slowest + measured.seconds(work.only_entries for work in works) <= LONG_SECONDS:
        return
    seconds = measured.seconds(works)
    if seconds <= LONG_SECONDS:
        return
    times = {option: measured.seconds(instead) for option, instead in replacements.items()}
    faster = [
        f"{option}, about {format_seconds(instead)}"
        for option, instead in times.items()
        if instead < _FASTER * seconds
    ]
    warn(
        f"{what} will take about {format_seconds(seconds)}, by the speed of a sample of it just "
        "now" + (f"; faster: {'; '.join(faster)}." if faster else "."),
        LongFitWarning,
    )


def format_seconds(seconds: float) -> str:
    """Return seconds in words.

    Examples
    --------
    >>> from sklearn_kd.linalg._forecast import format_seconds
    >>> [format_seconds(s) for s in (0.3, 80, 500, 10_000, 400_000)]
    ['1 second', '80 seconds', '8 minutes', '2.8 hours', '4.6 days']
    """
    for name, unit, most in (("second", 1, 120), ("minute", 60, 120), ("hour", 3600, 48)):
        count = seconds / unit
        if count < most:
            number = f"{count:.1f}" if unit == 3600 else f"{max(count, 1):.0f}"
            return f"{number} {name}{'' if number == '1' else 's'}"
    return f"{seconds / 86400:.1f} days"
