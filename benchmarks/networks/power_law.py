"""Power law of the transfer risk: finite ResNet students on CIFAR-10 against their number of rows.

The risk R(n) is the share of held-out images on which a student of n images and its teacher
disagree on the class. The teacher is a network of the student's architecture that was trained on
the labels of other images. Every seed draws an order of the images, of which the students take the
first n, and the initial weights, the same for every ρ.
"""

import matplotlib.pyplot as plt
import numpy as np
from _networks import (
    Clock,
    cifar10,
    imperfect_teacher,
    mean_and_error,
    or_stop,
    parser,
    print_table,
    report,
    settings,
)
from models import ResNet
from trainer import Training, grid, train_grid

N_TEACHER, N_TEST = 10_000, 10_000  # the first images, and the last
BATCH = 128


def parse_arguments():
    options = parser(__doc__)
    add = options.add_argument
    add("--rows", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    add("--soft-ratios", type=float, nargs="+", default=[1.0, 0.9])
    add("--side", type=int, default=16, help="images are averaged down to this size (32: as is)")
    add("--channels", type=int, default=16, help="of the first stage of the ResNet")
    add("--blocks", type=int, default=1, help="per stage: 1 is ResNet-8, 3 is ResNet-20")
    add("--epochs", type=int, default=10, help="on the most rows; n of them take √(most/n) as many")
    add("--learning-rate", type=float, default=0.2)
    add("--temperature", type=float, default=30.0)
    add("--seeds", type=int, default=3)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.soft_ratios = [128, 256, 512], [1.0, 0.9]
        arguments.channels, arguments.epochs, arguments.seeds = 4, 4, 2
    return arguments


def run(X, y, z_t, seed, n_rows, build, arguments, clock):
    """Return the transfer risk and the test error of every soft ratio."""
    order = N_TEACHER + np.random.default_rng(seed).permutation(len(X) - N_TEACHER - N_TEST)
    rows = order[:n_rows]
    training = Training(
        arguments.learning_rate,
        # A compromise between equal epochs and equal steps.
        epochs=round(arguments.epochs * np.sqrt(max(arguments.rows) / n_rows)),
        batch_size=BATCH,
        weight_decay=5e-4,
        schedule="cosine",
    )
    logits, _ = or_stop(
        train_grid(
            build,
            grid(arguments.soft_ratios, [arguments.temperature], [seed]),
            training,
            (X[rows], y[rows], z_t[rows]),
            evaluate=X[-N_TEST:],
            folder=arguments.output / f"power_law_{settings(arguments)}_{n_rows}",
            at_once=1 if arguments.device == "cpu" else None,
            seconds=clock.left(),
            device=arguments.device,
            log=print,
        )
    )
    classes = logits.argmax(2)
    return (classes != z_t[-N_TEST:].argmax(1)).mean(1), (classes != y[-N_TEST:]).mean(1)


def slopes(sizes, values):
    """Return the least-squares slope of log(values) over log(sizes), the last axis of values."""
    x = np.log(sizes) - np.mean(np.log(sizes))
    return np.log(values) @ x / (x @ x)


def draw(sizes, soft_ratios, risk):
    figure, axis = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    for index, rho in enumerate(soft_ratios):
        mean, bar = mean_and_error(risk[:, index])
        slope, error = mean_and_error(slopes(sizes, risk[:, index]))
        label = f"ρ = {rho:g}: slope {slope:.3f} ± {error:.3f}"
        axis.errorbar(sizes, mean, bar, marker="o", capsize=3, label=label, color=f"C{index}")
    axis.set(
        xlabel="training images $n$",
        ylabel="transfer risk $R(n)$: disagreement with the teacher",
        xscale="log",
        yscale="log",
    )
    axis.set_xticks(sizes, sizes)
    ticks = [t for t in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8) if risk.min() < t < risk.max()]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main():
    arguments = parse_arguments()
    clock = Clock(arguments.seconds)
    X, y = cifar10(arguments.data, arguments.side)

    def build(generator):
        return ResNet(arguments.channels, arguments.blocks, 10, generator)

    z_t = imperfect_teacher(X, y, N_TEACHER, build, arguments, clock)
    z_t = z_t - z_t.mean(1, keepdims=True)
    runs = [
        [run(X, y, z_t, seed, n, build, arguments, clock) for n in arguments.rows]
        for seed in range(arguments.seeds)
    ]
    # (seeds, sizes, [risk, error], soft ratios) -> two arrays (seeds, soft ratios, sizes)
    risk, error = np.array(runs).transpose(2, 0, 3, 1)

    teacher_error = np.mean(z_t[-N_TEST:].argmax(1) != y[-N_TEST:])
    for title, values in [
        (f"Transfer risk R(n), T = {arguments.temperature:g}, {arguments.seeds} seeds", risk),
        (f"Test error (teacher's: {teacher_error:.3f})", error),
    ]:
        rows = []
        for index, rho in enumerate(arguments.soft_ratios):
            mean, bar = mean_and_error(values[:, index])
            slope = "{:.3f} ± {:.3f}".format(
                *mean_and_error(slopes(arguments.rows, values[:, index]))
            )
            cells = [f"{m:.3f} ± {b:.3f}" for m, b in zip(mean, bar, strict=True)]
            rows.append([f"{rho:g}", *cells, slope])
        print_table(title, ["ρ", *map(str, arguments.rows), "slope"], rows)
    differences = [
        "{:.3f} ± {:.3f}".format(
            *mean_and_error(slopes(arguments.rows, risk[:, i]) - slopes(arguments.rows, risk[:, 0]))
        )
        for i in range(1, len(arguments.soft_ratios))
    ]
    print("Slope of R less that of the first ρ, paired over the seeds:", ", ".join(differences))
    if arguments.plot:
        draw(arguments.rows, arguments.soft_ratios, risk).savefig(arguments.plot, dpi=110)
    results = {
        "sizes": arguments.rows,
        "soft_ratios": arguments.soft_ratios,
        "transfer_risk": risk,
        "test_error": error,
        "teacher_error": teacher_error,
    }
    report(results, arguments, "power_law")


if __name__ == "__main__":
    main()
