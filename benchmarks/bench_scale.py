"""Whole (ρ, T) grids from 1e4 to 1e6 rows: exact, restricted to landmarks, and other libraries.

Every cell of the table is a fresh process that fits all 32 pairs (ρ, T) at once: seconds, and peak
memory above what the process held before beside the plan. Then it predicts the test rows with each
pair: seconds again, and accuracies. Rows are read from a folder of .npy chunks. Solvers:

exact          one Cholesky factor of all rows
pcg            the same students by preconditioned conjugate gradients, to a residual of --tol
nystrom        --components landmarks chosen by --landmarks, one pass over the chunks
search         LinearizedKDStudentCV(solver="nystrom"): the same, leave-one-out predictions of every
               row and pair in a second pass, and the best pair, whose accuracy is shown
nystroem-rbf   scikit-learn's Nystroem (rbf) and Ridge on the same targets. A callable kernel such
               as the NTK would be evaluated there pair by pair, in Python
xrfm           xRFM on the hard labels alone; left out where it is not installed. More than 20 000
               rows are split along principal components into leaves of at most so many: by
               default one model of up to 60 000 rows takes longer than all others together

``--products`` times kernel times 32 columns of as many rows as given, beside gpytorch's rbf kernel
where that is installed; ``--predict`` shows the memory that a student of --rows takes to predict as
many rows as given, in float32. Prints tables, fits growth exponents to all cells in the JSON file,
to which later runs add. Run nothing beside it.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from _common import clock, peak_bytes
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV
from sklearn_kd._memory import available_bytes, format_bytes
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._frame import frame_bytes
from sklearn_kd.rows._copies import merge_rows
from sklearn_kd.rows._streams import as_row_stream
from sklearn_kd.solvers import Nystrom
from sklearn_kd.solvers._pass import LandmarkChoice, nystrom_student
from sklearn_kd.solvers._pcg import pcg_student, plan_pcg
from sklearn_kd.solvers._rows_and_targets import StreamedRows

SOFT_RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9, 0.96, 0.99, 1.0]
TEMPERATURES = [1.0, 2.0, 5.0, 10.0]
GRID = torch.cartesian_prod(torch.tensor(SOFT_RATIOS), torch.tensor(TEMPERATURES)).double()
N_TEST = N_TEACHER = 10_000
CHUNK = 65_536
XRFM_LEAF = 20_000


def synthetic(n_rows, n_features=10):
    """Return Gaussian rows and noisy labels that depend on three of their features."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_features))
    logits = 5 * np.sin(2 * X[:, 0]) + 3 * X[:, 1] * X[:, 2]
    return X, (logits + rng.logistic(size=n_rows) > 0).astype(int)


def tabular(path, n_rows):
    """Return shuffled, standardised rows of an .npz file, and whether y is its commonest class."""
    with np.load(path) as file:
        X, y = file["X"], file["y"]
    order = np.random.default_rng(0).permutation(len(X))[:n_rows]
    X = StandardScaler().fit_transform(X[order].astype(np.float64))
    return X, (y[order] == np.bincount(y).argmax()).astype(int)


def write_problem(folder, path, n_rows):
    """Write training and test rows, labels and a boosted teacher's logits; return n_rows."""
    n_all = n_rows + N_TEST + N_TEACHER
    X, y = synthetic(n_all) if path is None else tabular(path, n_all)
    if len(X) < n_all:
        raise SystemExit(f"{path} has {len(X)} rows; --rows {n_rows} needs {n_all} of them.")
    teacher = HistGradientBoostingClassifier(max_iter=100, random_state=0)
    teacher.fit(X[:N_TEACHER], y[:N_TEACHER])
    test, train = slice(N_TEACHER, N_TEACHER + N_TEST), slice(N_TEACHER + N_TEST, None)
    arrays = {"X_test": X[test], "y_test": y[test], "y": y[train]}
    arrays["logits"] = teacher.decision_function(X[train])
    arrays["teacher_error"] = np.mean(teacher.predict(X[test]) != y[test])
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "rows").mkdir()
    for i, start in enumerate(range(0, n_rows, CHUNK)):
        np.save(folder / "rows" / f"{i:05}.npy", X[train][start : start + CHUNK])


class Problem:
    """What `write_problem` wrote."""

    def __init__(self, folder):
        self.folder = folder / "rows"
        self.X_test, self.y_test, self.y, self.logits = (
            torch.as_tensor(np.load(folder / f"{name}.npy"))
            for name in ("X_test", "y_test", "y", "logits")
        )
        self.stream = as_row_stream(self.folder)

    def targets(self, rows):
        """Return z_eff of some rows for the whole grid."""
        z_t, y = self.logits[rows, None], self.y[rows, None].double()
        return effective_logits(z_t, y, soft_ratio=GRID[:, 0], temperature=GRID[:, 1])

    def all_rows(self):
        return self.stream.take(np.arange(self.stream.n_rows))

    def distinct(self):
        """Return the distinct rows, and their targets: those of the mean labels."""
        X = self.all_rows()
        merged = merge_rows(X)
        targets = merged.mean(self.targets(slice(None)), X.new_ones(len(X)))
        return X[merged.first], targets

    def accuracies(self, logits):
        return ((logits > 0) == self.y_test[:, None].bool()).double().mean(dim=0)


def predictor(kernel, X, coefficients):
    return lambda X_test: kernel.matmat(X_test, X, coefficients)


def solve_exact(problem, arguments):
    X, targets = problem.distinct()
    kernel = NTK().to_torch()
    frame = TangentFrame(kernel, X, ridge=arguments.ridge)
    a = frame.solve(targets)
    plan = frame_bytes(*X.shape, len(GRID), X.dtype)
    return predictor(kernel, X, a), {"plan": plan, "distinct": len(X), "rcond": frame.rcond}


def solve_pcg(problem, arguments):
    X, targets = problem.distinct()
    kernel = NTK().to_torch()
    plan = plan_pcg(*X.shape, len(GRID), X.dtype, "auto", X.device)
    student = pcg_student(
        kernel,
        X,
        targets,
        ridge=arguments.ridge,
        plan=plan,
        tol=arguments.tol,
        max_iter=arguments.max_iter,
        random_state=np.random.RandomState(0),
    )
    report = student.report
    names = ("residual", "stopped", "n_products", "n_solved", "preconditioner_rank", "products")
    notes = {name: report[name] for name in names} | {"n_iter": student.n_iter}
    notes |= {"plan": plan.planned_bytes, "distinct": len(X)}
    return predictor(kernel, X, student.coefficients), notes


def solve_nystrom(problem, arguments):
    kernel, rows = NTK().to_torch(), StreamedRows(problem.stream, problem.targets)
    student = nystrom_student(
        kernel,
        rows,
        LandmarkChoice(arguments.components, arguments.landmarks, random_state=0),
        ridge=arguments.ridge,
    )
    notes = {"plan": student.report.planned_bytes, "rcond": student.report.rcond}
    notes |= {"captured trace": student.report.captured_trace}
    for gap in ("fit_gap", "held_out_gap"):
        notes[gap.replace("_", " ")] = float(np.sqrt(np.mean(student.report[gap] ** 2)))
    return predictor(kernel, student.landmarks, student.coefficients), notes


def search_nystrom(problem, arguments):
    search = LinearizedKDStudentCV(
        soft_ratios=SOFT_RATIOS,
        temperatures=TEMPERATURES,
        ridges=[arguments.ridge],
        solver=Nystrom(arguments.components, arguments.landmarks, random_state=0),
    )
    search.fit(problem.folder, problem.y.numpy(), teacher_logits=problem.logits.numpy())
    report = search.best_estimator_.fit_report_
    notes = {"plan": report.planned_bytes, "distinct": report.n_distinct_rows}
    notes |= {"chosen": search.best_params_, "leave-one-out accuracy": search.best_score_}
    return lambda X_test: torch.as_tensor(search.decision_function(X_test.numpy()))[:, None], notes


def solve_nystroem_rbf(problem, arguments):
    n_rows, n_features = problem.stream.n_rows, problem.stream.n_features
    features = 8 * n_rows * arguments.components
    if 2 * features > available_bytes(torch.device("cpu")):
        return None, {"skipped": f"its features alone take {format_bytes(features)}"}
    model = make_pipeline(
        Nystroem("rbf", gamma=1 / n_features, n_components=arguments.components, random_state=0),
        Ridge(alpha=1e-3),
    )
    model.fit(problem.all_rows().numpy(), problem.targets(slice(None)).numpy())
    return lambda X_test: torch.as_tensor(model.predict(X_test.numpy())), {}


def solve_xrfm(problem, arguments):
    if importlib.util.find_spec("xrfm") is None:
        return None, {"skipped": "xrfm is not installed"}
    from xrfm import xRFM

    X, y = problem.all_rows().float(), problem.y[:, None].float()
    n_validation = len(X) // 10
    model = xRFM(
        device="cpu",
        tuning_metric="accuracy",
        random_state=0,
        verbose=False,
        max_leaf_size=XRFM_LEAF,
        split_method="random_pca",
    )
    model.fit(X[n_validation:], y[n_validation:], X[:n_validation], y[:n_validation])
    return lambda X_test: torch.as_tensor(model.predict_proba(X_test.float())[:, 1:]) - 0.5, {}


SOLVERS = {
    "exact": solve_exact,
    "pcg": solve_pcg,
    "nystrom": solve_nystrom,
    "search": search_nystrom,
    "nystroem-rbf": solve_nystroem_rbf,
    "xrfm": solve_xrfm,
}


def run_cell(folder, arguments):
    """Print what one solver takes and reaches; runs in a fresh process."""
    problem = Problem(folder)
    problem.targets(slice(0, 10))
    warm_up = NTK().to_torch().gram(problem.X_test[:600])  # loads every library
    torch.linalg.cholesky(warm_up + torch.eye(600))
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    predict, notes = SOLVERS[arguments.cell](problem, arguments)
    record = {"seconds": time.perf_counter() - start, **notes}
    if predict is not None:
        record["peak"] = peak_bytes() - before
        start = time.perf_counter()
        accuracies = problem.accuracies(predict(problem.X_test))
        record["seconds to predict"] = time.perf_counter() - start
        record |= {"best accuracy": accuracies.max().item(), "mean": accuracies.mean().item()}
    print(json.dumps(record))


def show(solver, n_rows, record):
    if "skipped" in record:
        print(f"{n_rows:>9}  {solver:<13} left out: {record['skipped']}", flush=True)
        return
    plan = record.get("plan")
    beside = f"{record['peak'] / plan:9.2f}" if plan else " " * 9
    print(
        f"{n_rows:>9}  {solver:<13} {record['seconds']:9.1f} {record['seconds to predict']:8.1f} "
        f"{format_bytes(record['peak']):>11} {format_bytes(plan) if plan else '':>11} {beside} "
        f"{record['best accuracy']:9.4f} {record['mean']:9.4f}",
        flush=True,
    )


def growth(records):
    """Return, for data and solvers with several sizes, the exponents of seconds and peak in n."""
    exponents = {}
    for data, solver in sorted({(record["data"], record["solver"]) for record in records}):
        cells = [r for r in records if (r["data"], r["solver"]) == (data, solver) and "peak" in r]
        if len(cells) > 1:
            n = np.log([cell["rows"] for cell in cells])
            exponents[f"{data}, {solver}"] = {
                what: float(np.polyfit(n, np.log([cell[what] for cell in cells]), 1)[0])
                for what in ("seconds", "peak")
            }
    return exponents


def time_products(n_rows, n_features=10):
    """Return the seconds of one n × n kernel matrix times 32 columns, float64."""
    X = torch.as_tensor(synthetic(n_rows, n_features)[0])
    V = torch.ones(n_rows, len(GRID), dtype=torch.float64)
    seconds = {"NTK depth 3": clock(NTK().to_torch().matmat, X, X, V)}
    if importlib.util.find_spec("gpytorch"):
        import gpytorch

        kernel = gpytorch.kernels.RBFKernel().double()
        with torch.no_grad():
            seconds["gpytorch rbf"] = clock(
                lambda: torch.cat([kernel(block, X) @ V for block in X.split(2048)])
            )
    return seconds


def show_predictions(n_fit, n_predicted, components, n_features=10):
    """Show seconds and added peak memory of predicting each number of rows, float32."""
    X, y = synthetic(n_fit, n_features)
    z_t = 5 * np.sin(2 * X[:, 0]) + 3 * X[:, 1] * X[:, 2]
    student = LinearizedKDStudent(solver=Nystrom(components, random_state=0), dtype="float32")
    student.fit(X, y, teacher_logits=z_t)
    # As many dual coefficients as rows, as the exact solvers have them.
    student.X_fit_, student.dual_coef_ = X.astype(np.float32), z_t.astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for n_rows in n_predicted:
            path = Path(folder) / f"{n_rows}.npy"
            np.save(path, np.resize(X, (n_rows, n_features)))
            rows = np.load(path, mmap_mode="r")
            before = psutil.Process().memory_info().rss
            start = time.perf_counter()
            student.predict(rows)
            seconds = time.perf_counter() - start
            grown = max(0, peak_bytes() - before)
            print(
                f"{n_rows:>9} rows by {n_fit} coefficients: {seconds:7.1f} s, "
                f"peak {format_bytes(peak_bytes())}, {format_bytes(grown)} above before",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--solver", nargs="+", choices=SOLVERS, default=["nystrom"])
    parser.add_argument("--data", type=Path, help=".npz with X and y; default: synthetic rows")
    parser.add_argument(
        "--components",
        type=int,
        default=2_000,
        help="number of landmarks, and of the features of nystroem-rbf",
    )
    parser.add_argument(
        "--landmarks",
        choices=["rpcholesky", "uniform"],
        default="rpcholesky",
        help="how landmarks are chosen",
    )
    parser.add_argument("--products", type=int, help="time kernel products of so many rows, too")
    parser.add_argument("--ridge", type=float, default=0.0)
    parser.add_argument("--tol", type=float, default=1e-6, help="of pcg")
    parser.add_argument("--max-iter", type=int, default=500, help="of pcg")
    parser.add_argument(
        "--predict", type=int, nargs="+", help="show the memory of predicting so many rows instead"
    )
    parser.add_argument("--json", type=Path, default=Path("bench_scale.json"))
    parser.add_argument("--cell", choices=SOLVERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        run_cell(arguments.folder, arguments)
        return
    if arguments.predict:
        for n_rows in arguments.rows:
            show_predictions(n_rows, arguments.predict, arguments.components)
        return

    name = arguments.data.stem if arguments.data else "synthetic"
    print(
        f"{name}, {len(GRID)} (ρ, T), M = {arguments.components}, {torch.get_num_threads()} threads"
    )
    print(
        "     rows  solver          seconds  predict        peak        plan peak/plan  best acc "
        " mean acc"
    )
    result = {}
    if arguments.json.exists():
        result = json.loads(arguments.json.read_text())
    records = result.get("cells", [])
    for n_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_problem(Path(folder), arguments.data, n_rows)
            for solver in arguments.solver:
                command = [sys.executable, __file__, "--cell", solver, "--folder", folder]
                command += ["--components", str(arguments.components)]
                command += ["--landmarks", arguments.landmarks, "--ridge", str(arguments.ridge)]
                command += ["--tol", str(arguments.tol), "--max-iter", str(arguments.max_iter)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{solver} at {n_rows} rows failed:\n{done.stderr}")
                record = json.loads(done.stdout.splitlines()[-1])
                cell = {"solver": solver, "rows": n_rows, "data": name}
                records = [r for r in records if not cell.items() <= r.items()] + [record | cell]
                show(solver, n_rows, record)
                result |= {"cells": records, "growth": growth(records)}
                arguments.json.write_text(json.dumps(result, indent=2) + "\n")
            error = float(np.load(Path(folder) / "teacher_error.npy"))
            print(f"{n_rows:>9}  teacher's accuracy {1 - error:.4f}")
    if arguments.products:
        seconds = time_products(arguments.products)
        for kernel, taken in seconds.items():
            print(f"{arguments.products:>9}  product, {len(GRID)} columns, {kernel}: {taken:.2f} s")
        result |= {"products": {"rows": arguments.products, "seconds": seconds}}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    for cells, powers in growth(records).items():
        print(f"{cells}: seconds ~ n^{powers['seconds']:.2f}, peak ~ n^{powers['peak']:.2f}")


if __name__ == "__main__":
    main()
