"""Solving Eq. 3 row by row, beside one sigmoid (or softmax) over the same numbers.

Prints a table and writes JSON; medians of five. The ratio tells what a root costs in units of the
cheapest thing one could do to every logit. Run nothing beside it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _common import median_seconds

from sklearn_kd.distillation import effective_logits


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench_effective_logits.json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    binary, classes = rng.normal(scale=5, size=10**6), rng.normal(scale=5, size=(10**5, 10))
    problems = {
        "10⁶ binary, hard labels": (binary, rng.integers(0, 2, 10**6), torch.sigmoid),
        "10⁶ binary, fractional labels": (binary, rng.uniform(size=10**6), torch.sigmoid),
        "10⁶ binary, |z| up to 700": (
            140 * binary.clip(-5, 5),
            rng.integers(0, 2, 10**6),
            torch.sigmoid,
        ),
        "10⁵ × 10 classes": (classes, rng.integers(0, 10, 10**5), lambda z: z.softmax(dim=1)),
        "10⁵ × 10 classes, |z| up to 700": (
            140 * classes.clip(-5, 5),
            rng.integers(0, 10, 10**5),
            lambda z: z.softmax(dim=1),
        ),
    }
    results = {}
    print(f"{torch.get_num_threads()} threads\n{'':>34} {'seconds':>8} {'/ activation':>13}")
    for name, (logits, y, activation) in problems.items():
        tensor = torch.as_tensor(logits)
        seconds = median_seconds(
            lambda z=logits, y=y: effective_logits(z, y, soft_ratio=0.7, temperature=3.0)
        )
        ratio = seconds / median_seconds(lambda z=tensor, f=activation: f(z))
        print(f"{name:>34} {seconds:8.2f} {ratio:13.0f}")
        results[name] = {"seconds": seconds, "ratio": ratio}
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
