"""Generated problems, of extreme scales too: each ends in a right answer or a documented error.

This runs a few cases of each check; `python tests/run_fuzz.py --cases 10000` runs many.
"""

import fuzz_cases
import fuzz_checks
import fuzz_search
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sklearn_kd.exceptions import NotPSDError

CHECKS = fuzz_checks.CHECKS | fuzz_search.CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_right_answer_or_documented_error(name):
    @settings(
        max_examples=12 if name == "teacher" else 40,  # training takes longest
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def cases(data):
        fuzz_cases.outcome(CHECKS[name], data.draw)

    cases()


# The judge itself


def returns_nan(draw):
    fuzz_cases.require_finite(logits=[0.0, np.nan])


def divides_by_zero(draw):
    return 1 / 0


def raises_without_naming_anything(draw):
    raise ValueError("bad")


def warns_of_an_overflow(draw):
    return np.float64(1e300) * np.float64(1e300)


def answers_wrongly(draw):
    fuzz_cases.require_close([1.0, 2.0], [1.0, 2.1], 1e-3, "logits")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (returns_nan, "logits is not finite"),
        (divides_by_zero, "undocumented ZeroDivisionError"),
        (raises_without_naming_anything, "undocumented ValueError"),
        (warns_of_an_overflow, "undocumented RuntimeWarning"),
        (answers_wrongly, "logits is"),
    ],
)
def test_defects_are_recognised(case, message):
    with pytest.raises(fuzz_cases.Defect, match=message):
        fuzz_cases.outcome(case, None)


def test_a_hang_is_a_defect(monkeypatch):
    monkeypatch.setattr(fuzz_cases, "SECONDS_PER_CASE", 0.05)

    def hangs(draw):
        while True:
            pass

    with pytest.raises(fuzz_cases.Defect, match=r"more than 0\.05 s"):
        fuzz_cases.outcome(hangs, None)


def test_half_fitted_state_is_a_defect():
    class Careless:
        def fit(self):
            self.classes_ = [0, 1]
            raise NotPSDError("the matrix is not positive definite")

    model = Careless()
    with (
        pytest.raises(fuzz_cases.Defect, match=r"left \['classes_'\] on Careless"),
        fuzz_cases.nothing_half_fitted(model),
    ):
        model.fit()
