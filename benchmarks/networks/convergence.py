"""How close the tangent kernel of a finite network is to that of infinite width.

The networks are MLPs of Eq. 1 (NTK parametrisation, ReLU) before training. For each depth, width
and seed the script measures

    e = ‖Θ̂ − Θ‖ / ‖Θ‖  (Frobenius norms)

on MNIST images of 4 and 9, Θ̂ from `EmpiricalNTK` of the network and Θ from `NTK`. Entries of Θ̂
are averages over neurons, so e is expected to fall as 1/√width. The slope is that of log e over
log width, fitted for each seed; its error is the standard error over the seeds.

The mean of Θ̂ over the seeds tells fluctuation from bias: if the networks scatter about Θ, the mean
of s of them is √s times as close.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _networks import Clock, mean_and_error, or_stop, parser, print_table, report
from linearization import four_or_nine
from models import MLP
from power_law import slopes

from sklearn_kd.kernels import NTK, EmpiricalNTK


def parse_arguments():
    options = parser(__doc__)
    add = options.add_argument
    add("--rows", type=int, default=64)
    add("--depths", type=int, nargs="+", default=[1, 2, 3, 5], help="hidden layers")
    add("--widths", type=int, nargs="+", default=[2**k for k in range(5, 13)])
    add("--seeds", type=int, default=20)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.depths, arguments.widths, arguments.seeds = [1, 3], [32, 128, 512], 3
    return arguments


def tangent_kernel(X, depth, width, seed, arguments, clock):
    """Return Θ̂ of one network, kept in a file, or None if time is over."""
    folder = arguments.output / f"convergence_{len(X)}"
    file = folder / f"{depth}_{width}_{seed}.npy"
    if not file.exists():
        if clock.left() < 0:
            return None
        generator = torch.Generator().manual_seed(seed)
        module = MLP(X.shape[1], width, depth, 1, generator).double()
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, EmpiricalNTK(module, device=arguments.device)(X))
    return np.load(file)


def relative_error(kernels, limit):
    """Return ‖Θ̂ − Θ‖ / ‖Θ‖ of kernels (..., n, n)."""
    return np.linalg.norm(kernels - limit, axis=(-2, -1)) / np.linalg.norm(limit)


def draw(arguments, errors):
    figure, axis = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    widths = np.array(arguments.widths)
    for index, depth in enumerate(arguments.depths):
        mean, bar = mean_and_error(errors[index])
        slope, error = mean_and_error(slopes(widths, errors[index]))
        label = f"{depth} hidden, slope {slope:.2f} ± {error:.2f}"
        axis.errorbar(
            widths, mean, bar, marker="o", ms=4, capsize=2, label=label, color=f"C{index}"
        )
    guide = 1.4 * errors[-1].mean(0)[0] * np.sqrt(widths[0] / widths)
    axis.plot(widths, guide, color="0.6", lw=1, label="∝ 1/√width")
    axis.set(
        xlabel="width",
        ylabel=r"$\|\hat\Theta - \Theta\| \, / \, \|\Theta\|$",
        xscale="log",
        yscale="log",
    )
    axis.set_xticks(widths, widths)
    low, high = errors.mean(1).min(), guide[0]
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if 0.9 * low < t < high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    return figure


def main():
    arguments = parse_arguments()
    clock = Clock(arguments.seconds)
    X = four_or_nine(arguments.data)[0][: arguments.rows]

    errors = np.empty((len(arguments.depths), arguments.seeds, len(arguments.widths)))
    of_mean = np.empty((len(arguments.depths), len(arguments.widths)))
    for i, depth in enumerate(arguments.depths):
        limit = NTK(depth=depth)(X)
        for j, width in enumerate(arguments.widths):
            kernels = [
                or_stop(tangent_kernel(X, depth, width, seed, arguments, clock))
                for seed in range(arguments.seeds)
            ]
            errors[i, :, j] = relative_error(np.array(kernels), limit)
            of_mean[i, j] = relative_error(np.mean(kernels, axis=0), limit)

    table, means = [], []
    for depth, values, mean_kernel in zip(arguments.depths, errors, of_mean, strict=True):
        mean = values.mean(axis=0)
        slope = "{:.3f} ± {:.3f}".format(*mean_and_error(slopes(arguments.widths, values)))
        constant = mean[-1] * np.sqrt(arguments.widths[-1])
        cells = [f"{value:.3f}" for value in mean]
        table.append([str(depth), *cells, slope, f"{constant:.2f}"])
        means.append([str(depth), *(f"{value:.4f}" for value in mean_kernel)])
    widths = list(map(str, arguments.widths))
    print_table(
        f"Relative distance of the tangent kernel from its limit, mean of {arguments.seeds}",
        ["depth", *widths, "slope", "last × √width"],
        table,
    )
    print_table(f"Distance of the mean of {arguments.seeds} kernels", ["depth", *widths], means)
    if arguments.plot:
        draw(arguments, errors).savefig(arguments.plot, dpi=110)
    results = {"relative_error": errors, "relative_error_of_the_mean": of_mean}
    report(results, arguments, "convergence")


if __name__ == "__main__":
    main()
