"""Is the forecast of a plan that of networks which are really trained on more rows?

A plan is made from n rows for a network: its learning curve follows the network's surrogate, pilots
in finite time. Then the network is trained by the chosen recipe on n, 2n and 4n rows, with the same
epochs and several seeds, and tested on thousands of others.
"""

import time
import warnings

import numpy as np
from _networks import mean_and_error, parser, print_table, report
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from teacher_choice import mnist, shuffled, student_of, table_of

from sklearn_kd import DistillationPlan

FACTORS = (1, 2, 4)


def problems(arguments):
    """Yield name, rows, labels and an unfitted teacher."""
    rng = np.random.default_rng(0)
    X, y = shuffled(*mnist(arguments.data), rng)
    pair = np.isin(y, (4, 9))
    forest = CalibratedClassifierCV(RandomForestClassifier(100, random_state=0), cv=3)
    yield "MNIST 4/9", X[pair], (y[pair] == 9).astype(int), LogisticRegression(C=0.01)
    yield "pendigits", *shuffled(*table_of(arguments.data, "pendigits"), rng), forest
    yield "magic", *shuffled(*table_of(arguments.data, "magic"), rng), forest


def main():
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=800)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--epochs", type=int, default=40)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seeds, arguments.width, arguments.epochs = 150, 2, 32, 6
    results, table = {}, []
    for name, X, y, teacher in problems(arguments):
        start = time.process_time()
        found = one_problem(arguments, X, y, teacher)
        found["seconds"] = time.process_time() - start
        results[name] = found
        for i, factor in enumerate(FACTORS):
            mean, error = mean_and_error(found["errors"][i])
            low, high = (100 * found[side][i] for side in ("low", "high"))
            table.append(
                [
                    f"{name}, {factor}n",
                    f"{found['recipe'][0]:g}/{found['recipe'][1]:g}",
                    f"{100 * found['forecast'][i]:.1f} ({low:.1f} to {high:.1f})",
                    f"{100 * mean:.1f} ± {100 * error:.1f}",
                    f"{100 * (found['forecast'][i] / mean - 1):+.0f} %",
                ]
            )
            print(table[-1], flush=True)
    columns = ["rows", "ρ/T", "forecast (%)", "networks (%)", "off by"]
    print_table("Errors of networks with more rows", columns, table)
    report(results, arguments, "more_rows")


def one_problem(arguments, X, y, teacher):
    """Return the forecast from n rows, and the errors of networks."""
    n = arguments.rows
    teacher = FrozenEstimator(teacher.fit(X[:n], y[:n]))
    X, y = X[n:], y[n:]
    test = slice(4 * n, 4 * n + 6000)
    student = student_of(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = DistillationPlan(student, teacher, row_factors=(2, 4), random_state=0)
        plan.fit(X[:n], y[:n])
        errors = []
        for factor in FACTORS:
            of_seeds = []
            for seed in range(arguments.seeds):
                network = clone(plan.student_()).set_params(random_state=seed)
                network.fit(X[: factor * n], y[: factor * n])
                of_seeds.append(1 - network.score(X[test], y[test]))
            errors.append(of_seeds)
    one = plan.forecasts_[0]
    found = one.by_ratio[one.soft_ratio]
    return {
        "recipe": (plan.recipe_.soft_ratio, plan.recipe_.temperature),
        "forecast": found.error,
        "low": found.low,
        "high": found.high,
        "errors": np.array(errors),
    }


if __name__ == "__main__":
    main()
