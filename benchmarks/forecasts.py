"""How good are forecasts of the error with more rows, and do their intervals cover?

On every data set a teacher is fitted to rows of its own, and students are distilled from it by
three recipes. The forecast sees n rows alone: five folds of them, each to test students of a tenth
to all of the others, as `DistillationPlan` does. The truth is the error at
2n, 4n and 8n rows on all rows that are left, a mean over draws of the training rows. Beside
`learning_curve_forecast` stand a least-squares fit of the law POW4 (Viering and Loog, 2022), and
the last point of the curve.

The error at n is itself known from n rows only. "At n" is the relative error of the estimate there:
what no forecast can undo.

Laws and their priors were chosen on the sets of ``--tuning``, which are others.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudentCV
from sklearn_kd.metrics import learning_curve_forecast
from sklearn_kd.teachers._logits_of import Reading, logits_of

RATIOS = (0.5, 0.9, 1.0)
TEMPERATURE = 2.0
FACTORS = (1, 2, 4, 8)
N_FOLDS, N_SIZES = 5, 6
REPORTED = [
    "tabular/adult", "tabular/a9a", "tabular/shuttle", "tabular/fars", "tabular/skin",
    "tabular/krkopt", "tabular/musk2_clean2", "uci/magic", "uci/pendigits", "uci/optical",
    "uci/statlog-landsat", "uci/wall-following", "uci/waveform", "uci/page-blocks",
    "uci/wine-quality-white", "uci/abalone", "uci/cardiotocography-10clases", "uci/bank",
    "mnist/4,9", "mnist/all",
]  # fmt: skip
TUNING = [
    "uci/yeast", "uci/steel-plates", "uci/energy-y2",
    "uci/tic-tac-toe", "uci/credit-approval", "uci/oocytes_merluccius_nucleus_4d",
    "uci/oocytes_trisopterus_nucleus_2f", "uci/balance-scale", "mnist/3,5", "mnist/7,9",
    "mnist/0,6", "mnist/even", "sum/4", "sum/8", "rings/3", "rings/6",
]  # fmt: skip


def load(folder, name):
    """Return standardised rows and class indices of a data set."""
    kind, which = name.split("/")
    if kind == "mnist":
        with np.load(folder / "mnist" / "mnist.npz") as file:
            X, y = file["X_train"].reshape(-1, 784) / 255.0, file["y_train"].astype(int)
        if which == "even":
            return X, y % 2
        if which != "all":
            pair = [int(digit) for digit in which.split(",")]
            some = np.isin(y, pair)
            X, y = X[some], (y[some] == pair[1]).astype(int)
        return X, y
    if kind in ("sum", "rings"):
        return made(kind, int(which))
    with np.load(folder / kind / f"{which}.npz", allow_pickle=True) as file:
        last = "" if "X" in file else "_train"
        X, y = file[f"X{last}"].astype(float), file[f"y{last}"]
    y = np.unique(y, return_inverse=True)[1]
    X = StandardScaler().fit_transform(X[:, X.std(axis=0) > 0])
    return X, y


def made(kind, d):
    rng = np.random.default_rng(d)
    X = rng.normal(size=(20_000, d))
    z = X.sum(axis=1) if kind == "sum" else 2 * np.sin(3 * np.linalg.norm(X, axis=1))
    return X, (z + 0.3 * rng.normal(size=len(X)) > 0).astype(int)


def teacher_of(index):
    """Return teachers of several families, one after the other."""
    return [
        CalibratedClassifierCV(RandomForestClassifier(100, random_state=0), cv=3),
        HistGradientBoostingClassifier(max_iter=50, random_state=0),
        LogisticRegression(max_iter=2000),
    ][index % 3]


def curves_of(folder, name, index, arguments):
    """Return the errors of students of few rows, and the truth with more, of every recipe."""
    rng = np.random.default_rng(index)
    X, y = load(folder, name)
    order = rng.permutation(len(X))[:40_000]
    counts = np.bincount(y[order])
    order = order[counts[y[order]] >= 40]  # classes of a few rows are left out
    y = np.unique(y[order], return_inverse=True)[1]
    X = X[order]
    n = min(arguments.rows, len(X) // 12)
    n_teacher = min(2 * n, len(X) // 6)
    classes = np.unique(y)
    teacher = teacher_of(index).fit(X[:n_teacher], y[:n_teacher])
    if len(np.unique(y[:n_teacher])) < len(classes):
        raise ValueError(f"{name}: a class is missing among the teacher's rows")
    X, y = X[n_teacher:], y[n_teacher:]
    z = logits_of(teacher, X, classes, Reading(n_rows=n, is_frozen=True)).values.numpy()
    given = [p[:n] for p in (X, y, z)]
    sizes, errors = few_rows(given, classes, rng)
    truth = {}
    rest = np.arange(8 * n if len(X) >= 10 * n else 4 * n, len(X))[:6000]
    for factor in FACTORS:
        if factor * n > rest[0]:
            continue
        draws = []
        for draw in range(1 if factor == 8 else 3):
            pool = np.random.default_rng(draw).permutation(rest[0])[: factor * n]
            pool = np.arange(factor * n) if draw == 0 else pool
            draws.append(errors_on(X[pool], y[pool], z[pool], X[rest], y[rest], classes))
        truth[str(factor)] = np.mean(draws, axis=0)
    of_teacher = chosen(z[:n]) != y[:n]
    return {
        "n": n,
        "sizes": sizes,
        "errors": errors,
        "floor": of_teacher.mean(),
        "n_fresh": len(rest),
        **{f"truth{factor}": values for factor, values in truth.items()},
    }


def chosen(z):
    return (z > 0).astype(int) if z.ndim == 1 else z.argmax(axis=1)


def few_rows(given, classes, rng):
    """Return sizes, and errors (recipes, folds, sizes)."""
    X, y, _ = given
    n_learnt = int(len(y) * (1 - 1 / N_FOLDS))
    sizes = np.unique(np.geomspace(max(8, n_learnt / 10), n_learnt, N_SIZES).round().astype(int))
    errors = []
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0)
    for learnt, test in folds.split(y, y):
        learnt = rng.permutation(learnt)
        of_sizes = [
            errors_on(*(p[learnt[:size]] for p in given), X[test], y[test], classes)
            for size in sizes
        ]
        errors.append(np.stack(of_sizes, axis=1))
    return sizes, np.stack(errors, axis=1)


def errors_on(X, y, z, X_new, y_new, classes):
    """Return the errors of the students of some rows on others, one for each ρ."""
    search = LinearizedKDStudentCV(
        soft_ratios=RATIOS, temperatures=[TEMPERATURE], ridges=[1e-6], refit=False
    )
    search.fit(X, y, teacher_logits=z, classes=classes, X_val=X_new, y_val=y_new)
    return 1 - search.cv_results_["mean_test_score"]


def pow4(sizes, errors, targets):
    """Return a + b (m + c)^(−d), fitted by least squares to the mean errors."""
    mean = errors.mean(axis=0)

    def law(m, a, b, c, d):
        return a + b * (m + c) ** -d

    try:
        start = [mean[-1] / 2, mean[0] * sizes[0] ** 0.5, 0, 0.5]
        bounds = ([0, 0, 0, 0.01], [1, np.inf, 1000, 3])
        found, _ = curve_fit(law, sizes, mean, start, bounds=bounds, maxfev=20_000)
    except RuntimeError:
        return np.full(len(targets), mean[-1])
    return law(np.asarray(targets, float), *found)


def all_curves(arguments):
    """Return the curves of every set, kept in files."""
    found = {}
    for index, name in enumerate(TUNING if arguments.tuning else REPORTED):
        file = arguments.output / f"curves_{name.replace('/', '_')}_{arguments.rows}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.savez(file, **curves_of(arguments.data, name, index, arguments))
        with np.load(file) as curves:
            found[name] = dict(curves)
    return found


def judged(curves, forecaster):
    """Return, for every recipe and factor, forecast, interval and truth."""
    rows = []
    for name, one in curves.items():
        n, sizes = int(one["n"]), one["sizes"]
        factors = [f for f in FACTORS if f"truth{f}" in one]
        targets = [f * n for f in factors]
        for index, rho in enumerate(RATIOS):
            errors = one["errors"][index]
            floor = float(one["floor"]) if rho == 1 else None
            mid, low, high = forecaster(sizes, errors, targets, floor, n)
            for i, factor in enumerate(factors):
                truth = float(one[f"truth{factor}"][index])
                rows.append((name, rho, factor, mid[i], low[i], high[i], truth))
    return rows


def by_library(sizes, errors, targets, floor, n_tested):
    found = learning_curve_forecast(sizes, errors, targets, floor=floor, n_test=n_tested)
    return found.error, found.low, found.high


def by_pow4(sizes, errors, targets, floor, n_tested):
    mid = pow4(sizes, errors, targets)
    return mid, mid, mid


def by_last(sizes, errors, targets, floor, n_tested):
    mid = np.full(len(targets), errors[:, -1].mean())
    return mid, mid, mid


FORECASTERS = {"learning_curve_forecast": by_library, "POW4": by_pow4, "last point": by_last}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=1000, help="rows that a forecast sees, at most")
    parser.add_argument("--tuning", action="store_true", help="the sets that choices were made on")
    parser.add_argument("--output", type=Path, default=Path("forecasts"), help="folder of curves")
    parser.add_argument("--json", type=Path, default=Path("forecasts.json"))
    arguments = parser.parse_args()
    curves = all_curves(arguments)
    results = {}
    print(f"{len(curves)} data sets, {len(RATIOS)} recipes; errors of forecasts relative to truth")
    head = "".join(f"{f'{f}n: median':>16}{'covered':>10}{'width':>8}" for f in FACTORS)
    print(f"{'':26}{head}")
    for name, forecaster in FORECASTERS.items():
        rows = judged(curves, forecaster)
        line = f"{name:26}"
        for factor in FACTORS:
            some = np.array([row[3:] for row in rows if row[2] == factor and row[-1] > 0])
            mid, low, high, truth = some.T
            relative = np.abs(mid - truth) / truth
            covered = ((low <= truth) & (truth <= high)).mean()
            width = np.median((high - low) / truth)
            line += f"{100 * np.median(relative):14.1f} %{100 * covered:8.0f} %{width:8.2f}"
        results[name] = rows
        print(line)
    arguments.json.write_text(json.dumps(results, indent=1, default=float))


if __name__ == "__main__":
    main()
