"""Students that stop: a grid of recipes, folds and times as one integration, and run by run.

32 recipes (ρ from 0 to 1, T from 1 to 8) × 5 folds × 8 stopping times to 1e4. Together, all runs
are columns of one product with the kernel matrix of all rows; alone, each is integrated on the
rows of its fold, a share of them timed and scaled up. The search is that of LinearizedKDStudentCV
over these candidates and folds, without the last fit: kernel matrix, flows in groups, scores and
the best set. Prints a table and writes JSON. Run nothing beside it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _common import clock, ten_classes
from sklearn.model_selection import PredefinedSplit

from sklearn_kd import LinearizedKDStudentCV
from sklearn_kd.distillation._effective_logits_of_rows import MergedLabels
from sklearn_kd.kernels import NTK
from sklearn_kd.students._stopped import Stopped, losses_of_eq_2
from sklearn_kd.training._gradient_flow import gradient_flows

TIMES = np.geomspace(1, 1e4, 8)
N_FOLDS = 5
SOFT_RATIOS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
RECIPES = [
    {"soft_ratio": rho, "temperature": big_t, "temperature_scaling": "none"}
    for rho in SOFT_RATIOS
    for big_t in TEMPERATURES
]


def problem(path, n_rows, n_classes):
    """Return rows, labels, these as shares, and a teacher's noisy logits."""
    X, digit = ten_classes(path, n_rows)
    y = digit if n_classes == 10 else digit % 2
    noise = np.random.default_rng(0).standard_normal((n_rows, n_classes))
    z_t = 3 * np.eye(n_classes)[y] + noise
    z_t = z_t[:, 1] - z_t[:, 0] if n_classes == 2 else z_t - z_t.mean(axis=1, keepdims=True)
    hard = y.astype(float) if n_classes == 2 else np.eye(10)[y]
    return X, y, torch.as_tensor(hard), torch.as_tensor(z_t)


def integrate(K, hard, z_t, runs, kept):
    """Integrate runs, each a recipe and a fold that it leaves out, on the kept rows."""
    rows = torch.arange(len(K))[kept]
    losses = losses_of_eq_2(
        [
            Stopped(MergedLabels(z_t[rows], hard[rows], recipe["soft_ratio"]), recipe)
            for recipe, _ in runs
        ],
        beside=K,
    )
    weights = torch.stack([(rows % N_FOLDS != fold).to(K) for _, fold in runs])
    weights /= weights.sum(dim=1, keepdim=True)
    return gradient_flows(K[rows][:, rows], losses, weights, stopping_times=TIMES)


def search(X, y, z_t):
    """Score all candidates on the same folds."""
    LinearizedKDStudentCV(
        soft_ratios=SOFT_RATIOS,
        temperatures=TEMPERATURES,
        stopping_times=TIMES,
        cv=PredefinedSplit(np.arange(len(X)) % N_FOLDS),
        refit=False,
    ).fit(X, y, teacher_logits=z_t.numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--classes", type=int, default=2, choices=(2, 10))
    parser.add_argument("--alone", type=int, default=8, help="runs that are also timed alone")
    parser.add_argument("--data", type=Path, help=".npz with X_train (images 0-255) and y_train")
    parser.add_argument("--json", type=Path, default=Path("bench_flows.json"))
    arguments = parser.parse_args()
    runs = [(recipe, fold) for recipe in RECIPES for fold in range(N_FOLDS)]
    print(
        f"{len(runs)} runs × {len(TIMES)} times, {arguments.classes} classes, float64, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"{'n':>6} {'products':>9} {'together s':>11} {'one by one s':>13} {'ratio':>6} "
        f"{'search s':>9}"
    )
    results = {}
    for n_rows in arguments.rows:
        X, y, hard, z_t = problem(arguments.data, n_rows, arguments.classes)
        K = torch.as_tensor(NTK()(X))
        everything = slice(None)
        infos = []
        together = clock(  # called at once, within the iteration that binds its names
            lambda: infos.append(integrate(K, hard, z_t, runs, everything)[1])  # noqa: B023
        )
        some = runs[:: len(runs) // arguments.alone]
        alone = 0.0
        for run in some:
            kept = torch.arange(n_rows) % N_FOLDS != run[1]
            alone += clock(integrate, K, hard, z_t, [run], kept)
        alone *= len(runs) / len(some)
        products = float(infos[0].n_products.mean())
        searched = clock(search, X, y, z_t)
        print(
            f"{n_rows:6d} {products:9.0f} {together:11.1f} {alone:13.1f} {alone / together:6.1f} "
            f"{searched:9.1f}"
        )
        results[n_rows] = {
            "together": together,
            "one_by_one": alone,
            "products": products,
            "search": searched,
        }
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
