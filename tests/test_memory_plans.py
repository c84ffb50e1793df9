"""Work with no more memory than its refusal names succeeds, and takes no more than that."""

import json
import subprocess
import sys
from pathlib import Path

import memory_of_work
import pytest

SCRIPT = Path(memory_of_work.__file__)

# What a process takes beside: stacks and arenas of threads, what the allocator does not give back.
BESIDE = 16 * 2**20


def run(name, n_rows, *limit):
    command = [sys.executable, str(SCRIPT), name, *map(str, (n_rows, *limit))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in memory_of_work.WORK if "pcg" not in name])
def test_takes_no_more_than_it_names(name):
    bytes_ = run(name, 3000)
    assert bytes_["named"] > 3e7
    assert bytes_["taken"] <= 1.05 * bytes_["named"] + BESIDE


# Half of the kernel matrix of 8000 rows in float64 (288 MB), in float32, a part of it, none of it.
@pytest.mark.parametrize("limit", [5.8e8, 4.4e8, 3.7e8, 3.1e8])
def test_iteration_keeps_what_fits(limit):
    assert 0.4 * limit < run("pcg", 8000, limit)["taken"] <= limit


def test_folds_of_an_iteration_keep_what_fits():
    assert run("five folds, pcg", 4000, 3e8)["taken"] <= 3e8
