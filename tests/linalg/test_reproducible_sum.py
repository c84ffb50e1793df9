"""Sums in any order, against exact rational sums."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd.linalg._reproducible_sum import ReproducibleSum


def add_up(terms, order, n_processes=1):
    """Return the sum (k,) of the terms (n_terms, k), dealt out to processes."""
    bound = terms.abs().sum(dim=0)
    totals = [ReproducibleSum(1, bound) for _ in range(n_processes)]
    for i, term in enumerate(order):
        totals[i % n_processes].add(slice(0, 1), terms[term : term + 1])
    for other in totals[1:]:
        totals[0].parts += other.parts
    return totals[0].value()[0]


terms_of_any_size = st.lists(
    st.floats(-1e12, 1e12) | st.floats(-1e-6, 1e-6), min_size=1, max_size=40
)


@settings(deadline=None)
@given(terms_of_any_size, st.randoms(use_true_random=False), st.integers(1, 5))
def test_any_order_any_processes(numbers, random, n_processes):
    terms = torch.tensor(numbers, dtype=torch.float64)[:, None]
    order = list(range(len(numbers)))
    expected = add_up(terms, order)
    random.shuffle(order)
    assert torch.equal(add_up(terms, order, n_processes), expected)
    # Each term loses half a fine unit at most, the last addition half a place.
    exact = sum(map(Fraction, numbers))
    lost = len(numbers) * 2.0**-89 * np.abs(numbers).sum()
    assert abs(Fraction(expected.item()) - exact) <= abs(exact) * Fraction(2.0**-53) + Fraction(
        lost
    )


def test_sixteen_thousand_terms():
    terms = torch.randn(2**14, 3, generator=torch.Generator().manual_seed(0)).double()
    terms *= torch.logspace(-8, 8, 3, dtype=torch.float64)
    expected = add_up(terms, range(2**14))
    assert torch.equal(add_up(terms, range(2**14 - 1, -1, -1), 7), expected)
    exact = [float(sum(map(Fraction, column.tolist()))) for column in terms.T]
    assert expected.tolist() == exact


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_scales(scale):
    terms = scale * torch.tensor([[1.0, 0.0], [1e-9, 0.0], [-1.0, 0.0]]).double()
    np.testing.assert_allclose(add_up(terms, [0, 1, 2]), [scale * 1e-9, 0], rtol=1e-6)


def test_not_finite_terms_stay_so():
    terms = torch.tensor([[float("nan"), float("inf"), 1e308]]).double()
    assert not add_up(terms, [0]).isfinite().any()


def test_too_small_a_bound_costs_no_accuracy():
    total = ReproducibleSum(1, torch.tensor([1e-3]).double())
    for term in (1e6, 1.0, -1e6, 1e-5):
        total.add(slice(0, 1), torch.tensor([[term]]).double())
    assert total.value().item() == pytest.approx(1.00001, abs=1e-9)
