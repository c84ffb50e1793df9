"""Run the fuzz checks on many generated cases and print what came of them.

Every case ends in a right answer or a documented error; all others are listed as defects, with
the seed that repeats them, and the exit status is 1. `test_fuzz.py` runs a few of each check.
"""

import argparse
import collections
import contextlib
import os
import random
import sys
import time
import traceback

os.environ.setdefault("SCIPY_ARRAY_API", "1")

import fuzz_cases
import fuzz_checks
import fuzz_search
import hypothesis
import hypothesis.strategies as st
import numpy as np

CHECKS = fuzz_checks.CHECKS | fuzz_search.CHECKS


class OutOfTime(BaseException):
    """No failure of a case, so that hypothesis lets it pass."""


def run(name, n_cases, seed, deadline):
    """Run one check; return the number of each outcome and the defects, shortest first."""
    counts, defects = collections.Counter(), {}

    @hypothesis.settings(
        max_examples=n_cases,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(seed)
    @hypothesis.given(st.data())
    def cases(data):
        if time.perf_counter() > deadline:
            raise OutOfTime
        drawn = []

        def draw(strategy):
            drawn.append(data.draw(strategy))
            return drawn[-1]

        try:
            counts[fuzz_cases.outcome(CHECKS[name], draw)] += 1
        except Exception as error:  # of whatever type: it is a defect to report, not to end at
            counts["DEFECT"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.name}:{frame.lineno}"
            if error.__cause__ is not None:
                frame = traceback.extract_tb(error.__cause__.__traceback__)[-1]
                where = f"{frame.filename}:{frame.lineno}"
            text = f"{type(error).__name__}: {error}"
            defects.setdefault((where, text[:60]), []).append((text, drawn))

    with contextlib.suppress(OutOfTime):
        cases()
    return counts, defects


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="in all, over the checks")
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    options = parser.parse_args()
    np.set_printoptions(threshold=8, edgeitems=2)
    print(f"seed {options.seed}")
    start, total, failed = time.perf_counter(), 0, 0
    for name in options.checks:
        began = time.perf_counter()
        n_cases = -(-options.cases // len(options.checks))
        counts, defects = run(name, n_cases, options.seed, start + options.seconds)
        shares = ", ".join(f"{value} {key}" for key, value in counts.most_common())
        print(f"{name:30} {time.perf_counter() - began:6.1f} s  {shares}", flush=True)
        total, failed = total + counts.total(), failed + counts["DEFECT"]
        for (where, _), found in defects.items():
            text, drawn = found[0]
            print(f"  {len(found)} x {where}\n    {text[:600]}\n    {drawn!r:.1500}", flush=True)
    print(f"{total} cases in {time.perf_counter() - start:.0f} s, {failed} defects")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
