"""A grid that is small enough for the tests of plans."""

GRID = {"soft_ratios": (0.3, 0.9, 1.0), "temperatures": (1.0, 4.0), "random_state": 0}
