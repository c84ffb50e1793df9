"""Figure 5, left: finite ResNet students of imperfect teachers on CIFAR-10.

Test error over the soft ratio ρ, of students trained on some thousand images with the logits of a
teacher and the true labels, at a high temperature. Teachers: "own", a network of the student's
architecture trained on other images; "resnet20", stored logits of a published ResNet-20 that was
trained on the very images. Every seed draws the images, the initial weights and the order of the
batches, the same for every ρ: differences between soft ratios are paired.
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
    resnet20_logits,
    settings,
)
from models import ResNet
from trainer import Training, grid, train_grid

SOFT_RATIOS = [1, 0.9999, 0.9995, 0.999, 0.995, 0.99]
PUBLISHED_BEST = (5e-4, 1e-3)  # the range of 1 − ρ where the paper's error is lowest
N_TEACHER, N_TEST = 10_000, 10_000  # the first images, and the last


def parse_arguments():
    options = parser(__doc__)
    add = options.add_argument
    add("--rows", type=int, default=3000, help="images of a student")
    add("--side", type=int, default=16, help="images are averaged down to this size (32: as is)")
    add("--channels", type=int, default=16, help="of the first stage of the ResNet")
    add("--blocks", type=int, default=1, help="per stage: 1 is ResNet-8, 3 is ResNet-20")
    add("--epochs", type=int, default=10)
    add("--learning-rate", type=float, default=0.2)
    add("--temperature", type=float, default=30.0)
    add("--seeds", type=int, default=5)
    add("--teachers", nargs="+", choices=["own", "resnet20"], default=["own", "resnet20"])
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.channels, arguments.epochs, arguments.seeds = 512, 4, 2, 2
    return arguments


def student_errors(X, y, z_t, seed, build, arguments, folder, clock):
    """Return the test error of every soft ratio, for one draw of the rows and of the network."""
    pool = np.arange(N_TEACHER, len(X) - N_TEST)
    rows = np.random.default_rng(seed).choice(pool, arguments.rows, replace=False)
    training = Training(
        arguments.learning_rate,
        epochs=arguments.epochs,
        batch_size=128,
        weight_decay=5e-4,
        schedule="cosine",
    )
    logits, _ = or_stop(
        train_grid(
            build,
            grid(SOFT_RATIOS, [arguments.temperature], [seed]),
            training,
            (X[rows], y[rows], z_t[rows]),
            evaluate=X[-N_TEST:],
            folder=folder,
            at_once=1 if arguments.device == "cpu" else None,
            seconds=clock.left(),
            device=arguments.device,
            log=print,
        )
    )
    return (logits.argmax(2) != y[-N_TEST:]).mean(1)


def share_best(errors, n_draws=10_000):
    """Return how often each soft ratio has the lowest mean over a bootstrap of the seeds."""
    draws = np.random.default_rng(0).integers(len(errors), size=(n_draws, len(errors)))
    best = errors[draws].mean(1).argmin(1)
    return np.bincount(best, minlength=errors.shape[1]) / n_draws


def draw(results, temperature):
    figure, axes = plt.subplots(
        1, len(results), figsize=(5.2 * len(results), 4.4), layout="constrained", squeeze=False
    )
    titles = {"own": "Teacher: same network, other images", "resnet20": "Teacher: ResNet-20"}
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        errors, x = 100 * result["student_error"], 1 - np.array(SOFT_RATIOS)
        axis.plot(x, errors.T, color="0.75", linewidth=0.8, zorder=1)
        axis.plot([], [], color="0.75", linewidth=0.8, label="single seeds")
        mean, (_, bar) = errors.mean(0), mean_and_error(errors - errors[:, :1])
        label = "mean; s.e. of difference from ρ = 1"
        axis.errorbar(x, mean, bar, color="C0", marker="o", capsize=3, label=label)
        axis.plot(x[mean.argmin()], mean.min(), "*", color="C3", ms=15, zorder=3, label="lowest")
        axis.axvspan(*PUBLISHED_BEST, color="0.9", zorder=0, label="the paper's optimum")
        teacher, on_rows = (100 * result[k] for k in ("teacher_error", "teacher_error_on_pool"))
        if errors.min() - 3 < teacher < errors.max() + 3:
            axis.axhline(teacher, color="k", ls="--", lw=1, label="teacher")
        axis.set_xscale("symlog", linthresh=1e-4, linscale=0.5)
        axis.set_xticks(x, [f"{value:g}" for value in x.round(6)])
        axis.set_xlim(-2e-5, 1.4 * x.max())
        axis.set(
            title=f"{titles[name]}\n{on_rows:.1f} % wrong on the students' images",
            xlabel=f"hard ratio 1 − ρ (T = {temperature:g})",
            ylabel="test error (%)",
        )
        axis.legend(fontsize=8)
    return figure


def main():
    arguments = parse_arguments()
    clock = Clock(arguments.seconds)
    X, y = cifar10(arguments.data, arguments.side)

    def build(generator):
        return ResNet(arguments.channels, arguments.blocks, 10, generator)

    results = {}
    for name in arguments.teachers:
        if name == "own":
            z_t = imperfect_teacher(X, y, N_TEACHER, build, arguments, clock)
        else:
            z_t = resnet20_logits(arguments.data)
        z_t = z_t - z_t.mean(1, keepdims=True)
        folder = arguments.output / f"fig5_left_{name}_{settings(arguments)}"
        errors = [
            student_errors(X, y, z_t, seed, build, arguments, folder, clock)
            for seed in range(arguments.seeds)
        ]
        results[name] = {
            "student_error": np.array(errors),
            "teacher_error": (z_t[-N_TEST:].argmax(1) != y[-N_TEST:]).mean(),
            "teacher_error_on_pool": np.mean(
                z_t[N_TEACHER:-N_TEST].argmax(1) != y[N_TEACHER:-N_TEST]
            ),
            "rms_teacher_logit": np.sqrt(np.mean(z_t**2)),
        }

    for name, result in results.items():
        errors = 100 * result["student_error"]
        gains = errors[:, :1] - errors
        columns = ["1 − ρ", "test error (%)", "± s.e.", "gain over ρ = 1", "± s.e.", "share best"]
        parts = (*mean_and_error(errors), *mean_and_error(gains), share_best(errors))
        print_table(
            f"Teacher {name}: error {100 * result['teacher_error']:.2f} % on the test images, "
            f"{100 * result['teacher_error_on_pool']:.2f} % on the students'; "
            f"T = {arguments.temperature:g}, {arguments.rows} images, {arguments.seeds} seeds "
            "(published: lowest at 1 − ρ from 5e-4 to 1e-3)",
            columns,
            [
                [f"{1 - rho:.4g}", f"{row[0]:.2f}", *row[1:]]
                for rho, row in zip(SOFT_RATIOS, np.transpose(parts), strict=True)
            ],
        )
    if arguments.plot:
        draw(results, arguments.temperature).savefig(arguments.plot, dpi=110)
    report({"soft_ratios": SOFT_RATIOS, "teachers": results}, arguments, "fig5_left")


if __name__ == "__main__":
    main()
