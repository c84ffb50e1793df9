"""Time the infinite-width ReLU kernel beside the half matrix product and other libraries.

For each depth and dtype one run prints, as medians of repeated calls:

* ``half``    the products X_i X_jᵀ of the tiles on and above the diagonal, nothing else: no
              kernel matrix of dot products can be had for less;
* ``upper``   the upper triangle of the kernel matrix, as the solvers of this package ask for it;
* ``full``    the whole symmetric matrix, as the other libraries return it;
* ``neural-tangents`` and ``scikit-ntk``, if ``--peer-python`` names a Python that has them:

    python -m venv peer
    peer/bin/pip install neural-tangents==0.6.5 jax==0.4.26 jaxlib==0.4.26 "numpy<2" \\
        "scipy<1.13" scikit-ntk

neural-tangents is compiled and warmed up before it is timed, both whole and in batches, and the
faster of the two counts. Results are compared before times are believed. Run nothing beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _common import median_seconds

from sklearn_kd.kernels import NTK
from sklearn_kd.kernels._tiles import tile_size

PEER = """
import json, statistics, sys, time
import numpy as np

path, library, depth, dtype, repeats = sys.argv[1:]
depth, repeats = int(depth), int(repeats)
X = np.load(path).astype(dtype)


def clock(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if library == "neural-tangents":
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    import neural_tangents as nt
    from neural_tangents import stax

    layers = []
    for _ in range(depth):
        layers += [stax.Dense(1, W_std=1.0, b_std=1.0), stax.Relu()]
    kernel = stax.serial(*layers, stax.Dense(1, W_std=1.0, b_std=1.0))[2]
    rows = jax.numpy.asarray(X)
    whole = jax.jit(lambda x: kernel(x, None, "ntk"))
    variants = {"whole": lambda: whole(rows).block_until_ready()}
    batch = next((b for b in (500, 400, 250, 200) if len(X) % b == 0), None)
    if batch:
        batched = nt.batch(kernel, batch_size=batch)
        variants["batched"] = lambda: np.asarray(batched(rows, None, "ntk"))
    corner = np.asarray(kernel(rows[:50], None, "ntk"))
else:
    from skntk import NeuralTangentKernel

    variants = {"whole": lambda: NeuralTangentKernel(depth=depth, bias=1.0)(X)}
    corner = None
for call in variants.values():
    call()
best = next(iter(variants))
if len(variants) > 1:
    best = min(variants, key=lambda name: clock(variants[name]))
times = [clock(variants[best]) for _ in range(repeats)]
print(json.dumps({
    "seconds": statistics.median(times),
    "variant": best,
    "corner": None if corner is None else corner.astype(float).tolist(),
}))
"""


def rows_to_time(path, n_rows, n_features):
    """Return rows of a file, or sparse non-negative ones like those of images of digits."""
    if path is not None:
        with np.load(path) as data:
            X = data["X_train"]
        return (X.reshape(len(X), -1)[:n_rows] / np.abs(X).max()).astype(np.float64)
    rng = np.random.default_rng(0)
    return rng.random((n_rows, n_features)) * (rng.random((n_rows, n_features)) < 0.2)


def median_time(function, repeats):
    """Return the median seconds of ``repeats`` calls after one to warm up."""
    function()
    return median_seconds(function, repeats)


def half_product(X):
    """Return a function that forms the products of the tiles on and above the diagonal."""
    size, n = tile_size(X.device), len(X)
    tile = X.new_empty(size, size)

    def run():
        for i in range(0, n, size):
            for j in range(i, n, size):
                left, right = X[i : i + size], X[j : j + size]
                torch.mm(left, right.T, out=tile[: len(left), : len(right)])

    return run


def measure(X, depth, dtype, repeats, peer_python):
    kernel = NTK(depth).to_torch()
    rows = torch.as_tensor(X, dtype=getattr(torch, dtype))
    out = rows.new_empty(len(X), len(X))
    seconds = {
        "half": median_time(half_product(rows), repeats),
        "upper": median_time(lambda: kernel.gram(rows, out=out, symmetrize=False), repeats),
        "full": median_time(lambda: kernel.gram(rows, out=out), repeats),
    }
    result = {"depth": depth, "dtype": dtype, "seconds": seconds}
    if peer_python is not None:
        corner = out[:50, :50].double().numpy()
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file, X)
            file.flush()
            for library in ("neural-tangents", "scikit-ntk"):
                arguments = [file.name, library, depth, dtype, repeats]
                peer = subprocess.run(
                    [peer_python, "-c", PEER, *map(str, arguments)],
                    check=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                answer = json.loads(peer.stdout)
                seconds[library] = answer["seconds"]
                if answer["corner"] is not None:
                    difference = np.abs(np.array(answer["corner"]) / corner - 1).max()
                    result["largest_relative_difference"] = float(difference)
                    result["neural_tangents_variant"] = answer["variant"]
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1000 rows, one repeat")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="an .npz file with an array X_train")
    parser.add_argument("--peer-python", help="a Python that has neural-tangents and scikit-ntk")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    n_rows, repeats = (1000, 1) if options.quick else (options.rows, options.repeats)

    X = rows_to_time(options.data, n_rows, options.features)
    print(f"n = {len(X)}, d = {X.shape[1]}, {torch.get_num_threads()} threads, seconds")
    columns = ["half", "upper", "full"]
    if options.peer_python:
        columns += ["neural-tangents", "scikit-ntk"]
    print(f"{'depth':>5} {'dtype':>8}", *(f"{column:>15}" for column in columns), end="")
    print(f"{'upper/half':>12}", "  neural-tangents/upper, /full" if options.peer_python else "")
    results = []
    for dtype in ("float32", "float64"):
        for depth in (3, 10):
            result = measure(X, depth, dtype, repeats, options.peer_python)
            results.append(result)
            seconds = result["seconds"]
            print(f"{depth:5d} {dtype:>8}", *(f"{seconds[c]:15.3f}" for c in columns), end="")
            print(f"{seconds['upper'] / seconds['half']:12.2f}", end="")
            if options.peer_python:
                peer = seconds["neural-tangents"]
                print(f"{peer / seconds['upper']:12.1f} {peer / seconds['full']:8.1f}", end="")
            print(flush=True)
    if options.json is not None:
        versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
        settings = {"rows": len(X), "features": X.shape[1], "repeats": repeats}
        report = {"settings": settings, "versions": versions, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
