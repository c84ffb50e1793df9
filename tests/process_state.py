"""State of the process that results must not depend on, for tests of that."""

import contextlib

import numpy as np
import torch


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def state_of_numpy():
    # The legacy generator, which is the only one that a process shares.
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002 - see above
    return keys.tolist(), position
