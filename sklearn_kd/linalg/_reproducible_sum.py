"""Sums whose bits do not depend on the order of their terms, nor on which process adds them.

Floating-point addition is not associative. So a shared sum would depend on the number of processes.
Terms add up without any rounding if they are multiples of one power of two, and their sums stay
below 2⁵³ times that power. So each term is split, exactly, into a multiple of a coarse unit, a
multiple of a fine unit, and a rest that is too small to matter (Demmel and Nguyen, "Fast
reproducible floating-point summation", 2013). The units follow from a bound M on every sum:

==========  ===========  ==========================================================
coarse      2⁻⁵⁰ M       sums below 2⁵⁰ units
fine        2⁻⁹⁰ M       a term has at most 2³⁹ units; up to 2¹⁴ terms below 2⁵³
==========  ===========  ==========================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

_FINE = 2.0**-40


class ReproducibleSum:
    """Sums of float64 arrays that are added to some rows of (n, k) at a time.

    Parameters
    ----------
    n_rows : int
        n.
    bound : Tensor of shape (k,)
        At least the sum of the absolute terms of any entry of each column. If it is smaller, sums
        are as accurate as ordinary ones, but depend on the order.

    Attributes
    ----------
    parts : Tensor of shape (2, n, k)
        Sums of the coarse and of the fine parts. Those of several processes may be added.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.linalg._reproducible_sum import ReproducibleSum
    >>> total = ReproducibleSum(2, torch.tensor([4.0]).double())
    >>> total.add(slice(0, 2), torch.tensor([[0.1], [0.7]]).double())
    >>> total.add(slice(1, 2), torch.tensor([[-0.6]]).double())
    >>> total.value().T
    tensor([[0.1000, 0.1000]], dtype=torch.float64)
    """

    def __init__(self, n_rows: int, bound: Tensor) -> None:
        _, exponent = torch.frexp(bound.double())
        limit = torch.ldexp(torch.ones_like(bound, dtype=torch.float64), exponent)  # M
        # the last place of numbers about 6 M is the coarse unit
        self._coarse, self._fine = 6 * limit, 6 * _FINE * limit
        self.parts = limit.new_zeros(2, n_rows, len(bound))

    def add(self, rows: slice, term: Tensor) -> None:
        """Add a term of shape (n_rows, k) to these rows."""
        coarse = (term + self._coarse) - self._coarse
        rest = term - coarse
        self.parts[0, rows] += coarse
        self.parts[1, rows] += rest.add_(self._fine).sub_(self._fine)

    def value(self) -> Tensor:
        """Return the sums, shape (n, k)."""
        return self.parts[0] + self.parts[1]
