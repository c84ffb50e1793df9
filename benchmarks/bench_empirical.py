"""Time the tangent kernel of torch modules beside torch.func's contraction of Jacobians.

Each measurement is a process of its own, which reports the seconds of one Gram matrix, its peak
memory beyond what it held before, and a corner of the result. Corners are compared before times
are believed. Seconds are the median of ``--repeats`` after a first call on few rows; for the ResNet
the libraries take turns, in new processes. All in float64.

* an MLP 784-512-512-1 on ``--rows`` rows: this package; ``torch.func``, the per-row Jacobian by
  ``vmap(jacrev(...))``, once, and one ``einsum`` per parameter; neural-tangents' empirical kernel
  of the same weights, compiled, the faster of two implementations (the third, by structured
  derivatives, does not run with these versions), if ``--peer-python`` names a Python that has it:

    python -m venv peer
    peer/bin/pip install neural-tangents==0.6.5 jax==0.4.26 jaxlib==0.4.26 "numpy<2" "scipy<1.13"

* the same MLP on ``--many-rows`` rows: this package alone, with its memory;
* a ResNet-8 with ten outputs on ``--images`` CIFAR-10 images, or random ones without ``--data``:
  this package and ``torch.func`` with ``chunk_size``, the mean over the ten outputs.

Run nothing beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from _common import median_seconds, peak_bytes
from networks.models import ResNet
from torch.func import functional_call, jacrev, vmap

from sklearn_kd.kernels import EmpiricalNTK

CORNER = 20

PEER = """
import json, statistics, sys, time
import numpy as np
import jax

jax.config.update("jax_enable_x64", True)
import neural_tangents as nt

with np.load(sys.argv[1]) as file:
    X = jax.numpy.asarray(file["X"])
    weights = [jax.numpy.asarray(file[f"weight{i}"]) for i in range(6)]


def network(weights, x):
    for i in (0, 2, 4):
        x = x @ weights[i].T + weights[i + 1]
        if i < 4:
            x = jax.nn.relu(x)
    return x


best = None
for name in ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS"):
    kernel = nt.empirical_ntk_fn(
        network, trace_axes=(-1,), vmap_axes=0, implementation=nt.NtkImplementation[name]
    )
    compiled = jax.jit(lambda x: kernel(x, None, weights))
    result = np.asarray(compiled(X))
    times = []
    for _ in range(int(sys.argv[2])):
        start = time.perf_counter()
        compiled(X).block_until_ready()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    if best is None or seconds < best["seconds"]:
        best = {"seconds": seconds, "variant": name, "corner": result[:20, :20].tolist()}
print(json.dumps(best))
"""


def mlp():
    """Return the MLP 784-512-512-1 with the same weights in every process."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for n_in, n_out in ((784, 512), (512, 512), (512, 1)):
        layer = torch.nn.Linear(n_in, n_out, dtype=torch.float64)
        torch.nn.init.normal_(layer.weight, std=(2 / n_in) ** 0.5, generator=generator)
        torch.nn.init.normal_(layer.bias, std=0.1, generator=generator)
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]), None


def resnet():
    """Return a ResNet-8 in evaluation mode, its running statistics away from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    module = ResNet(16, 1, 10, generator).double().eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module, (3, 32, 32)


NETWORKS = {"mlp": mlp, "resnet": resnet}


def rows_of(network, n_rows, data):
    """Return rows (n, d) in float64: images from a file, or random ones."""
    if network == "resnet" and data is not None:
        with np.load(data) as file:  # differences of neighbours along rows, modulo 256
            images = np.cumsum(file["D"][:n_rows], axis=3, dtype=np.uint8)
        return images.reshape(len(images), -1) / 255.0
    return np.random.default_rng(0).random((n_rows, 784 if network == "mlp" else 3072))


def contraction(module, inputs, chunk_size):
    """Return Σ_k J_k J_kᵀ / K from whole Jacobians, one einsum per parameter."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def outputs(weights, x):
        return functional_call(module, weights, (x[None],))[0]

    J = vmap(jacrev(outputs), (None, 0), chunk_size=chunk_size)(weights, inputs)
    total = 0
    for part in J.values():
        part = part.flatten(2)
        total = total + torch.einsum("nkp,mkp->nm", part, part)
    return total / part.shape[1]


def work(settings):
    """Do one measurement and print it: what runs in the process of its own."""
    module, shape = NETWORKS[settings["network"]]()
    X = torch.as_tensor(rows_of(settings["network"], settings["rows"], settings["data"]))
    if settings["library"] == "sklearn_kd":
        kernel = EmpiricalNTK(module, input_shape=shape).to_torch()

        def compute(X):
            return kernel.gram(X)
    else:

        def compute(X):
            inputs = X if shape is None else X.reshape(-1, *shape)
            return contraction(module, inputs, settings["chunk_size"])

    compute(X[:4])
    before, results = psutil.Process().memory_info().rss, []

    def run():
        results[:] = [compute(X)]

    seconds = median_seconds(run, settings["repeats"])
    corner = results[0][:CORNER, :CORNER].tolist()
    peak = (peak_bytes() - before) / 2**20
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "corner": corner}))


def measure(library, network, rows, *, repeats, data=None, chunk_size=None):
    """Return what a process of its own measures."""
    settings = {
        "library": library,
        "network": network,
        "rows": rows,
        "repeats": repeats,
        "data": None if data is None else str(data),
        "chunk_size": chunk_size,
    }
    command = [sys.executable, __file__, "--worker", json.dumps(settings)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout)


def measure_peer(python, rows, repeats):
    """Return what neural-tangents needs for the MLP, compiled, its faster implementation."""
    weights = [p.detach().numpy() for p in mlp()[0].parameters()]
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(
            file,
            X=rows_of("mlp", rows, None),
            **{f"weight{i}": weight for i, weight in enumerate(weights)},
        )
        file.flush()
        peer = subprocess.run(
            [python, "-c", PEER, file.name, str(repeats)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return json.loads(peer.stdout)


def largest_difference(results):
    """Return the largest relative difference of the corners from the first."""
    first, *others = (np.array(result["corner"]) for result in results)
    return max((float(np.abs(other / first - 1).max()) for other in others), default=0.0)


def show(title, results):
    print(f"\n{title}")
    print(f"{'':32}{'seconds':>10}{'peak MiB':>10}{'times':>8}")
    fastest = results["sklearn_kd"]["seconds"]
    for name, result in results.items():
        peak = f"{result['peak_mib']:10.0f}" if "peak_mib" in result else f"{'':>10}"
        label = f"{name} {result.get('variant', '').lower()}"
        print(f"{label:32}{result['seconds']:10.3f}{peak}{result['seconds'] / fastest:8.1f}")
    print(
        f"largest relative difference {largest_difference(list(results.values())):.1e}", flush=True
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rows, one repeat")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--many-rows", type=int, default=5000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--chunk-size", type=int, default=50, help="of torch.func's vmap")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="an .npz file of CIFAR-10 images, D")
    parser.add_argument("--peer-python", help="a Python that has neural-tangents")
    parser.add_argument("--only", choices=["mlp", "many", "resnet"], help="one of the three parts")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(json.loads(options.worker))
        return
    rows, many, images, repeats = options.rows, options.many_rows, options.images, options.repeats
    if options.quick:
        rows, many, images, repeats = 100, 500, 20, 1

    report = {}
    print(f"{torch.get_num_threads()} threads, float64")
    if options.only in (None, "mlp"):
        results = {
            "sklearn_kd": measure("sklearn_kd", "mlp", rows, repeats=repeats),
            "torch.func": measure("torch.func", "mlp", rows, repeats=1),
        }
        if options.peer_python:
            results["neural-tangents"] = measure_peer(options.peer_python, rows, repeats)
        report["mlp"] = results
        show(f"MLP 784-512-512-1, n = {rows}", results)
    if options.only in (None, "many"):
        results = {"sklearn_kd": measure("sklearn_kd", "mlp", many, repeats=1)}
        report["many"] = results
        show(
            f"MLP 784-512-512-1, n = {many}; the kernel matrix takes {many**2 / 2**17:.0f} MiB, "
            f"a Jacobian would take {many * 669_000 / 2**17:.0f} MiB",
            results,
        )
    if options.only in (None, "resnet"):
        common = {"data": options.data, "chunk_size": options.chunk_size, "repeats": 1}
        runs = {"sklearn_kd": [], "torch.func": []}
        for _ in range(repeats):  # in turn, as minutes lie between the first and the last
            for library, results in runs.items():
                results.append(measure(library, "resnet", images, **common))
        print("ResNet-8:", {k: [round(r["seconds"], 1) for r in rs] for k, rs in runs.items()})
        results = {
            library: sorted(results, key=lambda result: result["seconds"])[len(results) // 2]
            for library, results in runs.items()
        }
        report["resnet"] = results
        show(f"ResNet-8, ten outputs, n = {images}", results)
    if options.json is not None:
        for results in report.values():
            for result in results.values():
                del result["corner"]
        versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
        settings = {"rows": rows, "many_rows": many, "images": images, "repeats": repeats}
        options.json.write_text(
            json.dumps({"settings": settings, "versions": versions, "results": report}, indent=2)
            + "\n"
        )


if __name__ == "__main__":
    main()
