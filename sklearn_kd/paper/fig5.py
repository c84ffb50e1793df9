"""Figure 5, middle and right: when hard labels help a student of an imperfect teacher.

Left: the student's test error over the hard ratio 1 − ρ, for a good but imperfect teacher. Right:
the effect of hard labels (Eq. 12) over the teacher's stopping time, above the test error that hard
labels leave. (The paper's left panel, CIFAR-10 with a ResNet, is not part of this script.)
"""

import numpy as np

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.datasets import make_gaussian_mixture_logits
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import hard_label_effect
from sklearn_kd.paper._common import mean_and_error, over_runs, print_table, pyplot, save

KERNEL = NTK(depth=3)
TIMES = [30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000]  # learning rate × epochs
TEMPERATURES = [5.0, 10.0, 20.0, 30.0]
HARD_RATIOS = np.array(
    [0, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 0.9]
)
PUBLISHED_BEST = (5e-4, 1e-3)  # the range of 1 − ρ where the paper's error is lowest
N_TEACHER = 2000


def run(seed, n_rows, n_test):
    """Return the test errors and Eq. 12 of one random task.

    Returns
    -------
    student : ndarray of shape (n_times, n_hard_ratios, n_temperatures)
        Test error.
    teacher : ndarray of shape (n_times,)
        Test error.
    effect : ndarray of shape (2, n_times)
        Eq. 12 at the first temperature, of the ground truth's logits and of labels as a proxy.
    """
    task = make_gaussian_mixture_logits(N_TEACHER + n_rows + n_test, random_state=seed)
    parts = [N_TEACHER, N_TEACHER + n_rows]
    X_teacher, X, X_test = np.split(task.X, parts)
    y_teacher, y, y_test = np.split(task.y, parts)
    z_g = task.function(X)
    teacher = NTKTeacher(KERNEL, stopping_time=TIMES).fit(X_teacher, y_teacher)

    student_error, teacher_error, effect = [], [], []
    staged = teacher.staged_decision_function(X), teacher.staged_decision_function(X_test)
    for z_t, z_t_test in zip(*staged, strict=True):
        student = LinearizedKDStudent(kernel=KERNEL).fit(X, y, teacher_logits=z_t)
        path = student.prefix_path(
            X_test,
            teacher_logits=z_t_test,
            y=y_test,
            sizes=[n_rows],
            param_grid={"soft_ratio": 1 - HARD_RATIOS, "temperature": TEMPERATURES},
        )
        student_error.append(path.error.reshape(len(HARD_RATIOS), len(TEMPERATURES)))
        teacher_error.append(np.mean((z_t_test > 0) != y_test))
        effect.append(
            [
                hard_label_effect(
                    student.tangent_frame(),
                    z_t,
                    y,
                    temperature=TEMPERATURES[0],
                    ground_truth_logits=ground_truth,
                    n_bootstraps=1,
                ).value
                for ground_truth in (z_g, None)
            ]
        )
    return np.array(student_error), np.array(teacher_error), np.array(effect).T


def lowest(errors):
    """Return the index of the lowest mean over the runs; ``errors`` is (n_runs, n_hard_ratios)."""
    return errors.mean(axis=0).argmin()


def optimum_row(errors):
    """Return the best 1 − ρ, its error, and its paired gains over ρ = 1 and over ρ = 0.5."""
    best = lowest(errors)
    half = list(HARD_RATIOS).index(0.5)
    gains = [100 * (errors[:, other] - errors[:, best]) for other in (0, half)]
    return [
        HARD_RATIOS[best],
        *100 * errors[:, [0, best, half]].mean(axis=0),
        *("{:.3f} ± {:.3f}".format(*mean_and_error(gain)) for gain in gains),
    ]


def draw(student, teacher, effect):
    """Draw the errors by hard ratio, and the effect of hard labels by stopping time."""
    plt = pyplot()
    figure = plt.figure(figsize=(11, 5), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    left = figure.add_subplot(grid[:, 0])
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(TEMPERATURES)))
    for index, (temperature, color) in enumerate(zip(TEMPERATURES, colors, strict=True)):
        errors = 100 * student[:, -1, :, index]
        mean, (_, bar) = errors.mean(axis=0), mean_and_error(errors - errors[:, :1])
        label = f"student, T = {temperature:g}"
        left.errorbar(HARD_RATIOS, mean, bar, color=color, capsize=2, label=label)
        best = mean.argmin()
        left.plot(HARD_RATIOS[best], mean[best], "*", color=color, markersize=13)
    left.axhline(100 * teacher[:, -1].mean(), color="k", ls="--", lw=1, label="teacher")
    left.axvspan(*PUBLISHED_BEST, color="0.88", zorder=0, label="the paper's optimum")
    left.set(
        title=f"Teacher of stopping time {TIMES[-1]:,}",
        xlabel="hard ratio 1 − ρ (0: soft labels alone; stars: lowest)",
        ylabel="test error (%); bars: s.e. of the paired difference from ρ = 1",
    )
    left.set_xscale("symlog", linthresh=1e-4, linscale=0.5)
    left.legend(fontsize=8)

    upper = figure.add_subplot(grid[0, 1])
    upper.plot(TIMES, effect[:, 0].T, color="C0", alpha=0.25, linewidth=0.8)
    for values, color in zip(effect.transpose(1, 0, 2), ["C0", "C1"], strict=True):
        upper.errorbar(TIMES, *mean_and_error(values), color=color, marker="o", ms=4)
    upper.text(TIMES[-1], 500, "$z_g$ = labels ±1", color="C1", ha="right")
    upper.text(TIMES[-1], -40, "$z_g$ = true logits (thin: single runs)", color="C0", ha="right")
    upper.axhline(0, color="0.4", linewidth=0.8)
    upper.set(title=f"Hard labels, T = {TEMPERATURES[0]:g}", ylabel="Eq. 12", xscale="log")
    upper.set_yscale("symlog", linthresh=1)
    upper.tick_params(labelbottom=False)

    lower = figure.add_subplot(grid[1, 1], sharex=upper)
    best = [student[:, i, lowest(student[:, i, :, 0]), 0] for i in range(len(TIMES))]
    for values, style, label in [
        (teacher, "k--", "teacher"),
        (student[:, :, 0, 0], "C3o-", "student, ρ = 1"),
        (np.transpose(best), "C2o-", "student, best ρ"),
    ]:
        mean, bar = mean_and_error(100 * values)
        lower.errorbar(TIMES, mean, bar, fmt=style, markersize=4, label=label)
    lower.set(xlabel="the teacher's stopping time", ylabel="test error (%)", yscale="log")
    lower.legend(fontsize=8)
    return figure


def main(arguments):
    """Compute the figure, and write it."""
    n_runs, n_rows, n_test = (3, 1024, 3000) if arguments.quick else (20, 2048, 10_000)
    runs = over_runs(lambda seed: run(seed, n_rows, n_test), n_runs, arguments, "Figure 5")
    student, teacher, effect = (np.stack(values) for values in zip(*runs, strict=True))

    columns = ["best 1 − ρ", "error % ρ = 1", "best", "ρ = 0.5", "gain over ρ = 1", "over ρ = 0.5"]
    print_table(
        f"Fig. 5 middle: stopping time {TIMES[-1]:,} (published: best 1 − ρ from 5e-4 to 1e-3)",
        ["temperature", *columns],
        [
            [f"{temperature:g}", *optimum_row(student[:, -1, :, index])]
            for index, temperature in enumerate(TEMPERATURES)
        ],
    )
    print_table(
        f"The same at T = {TEMPERATURES[0]:g} for every teacher",
        ["stopping time", "teacher's error %", *columns],
        [
            [f"{time:,}", 100 * teacher[:, i].mean(), *optimum_row(student[:, i, :, 0])]
            for i, time in enumerate(TIMES)
        ],
    )
    value, bar = mean_and_error(effect)
    share = (effect > 0).mean(axis=0)
    print_table(
        "Fig. 5 right: Eq. 12 (published: positive for early-stopped teachers, then changes sign)",
        ["stopping time", "Eq. 12", "± s.e.", "positive runs", "labels as proxy", "± s.e.", "pos."],
        [
            [f"{time:,}", value[0, i], bar[0, i], share[0, i], value[1, i], bar[1, i], share[1, i]]
            for i, time in enumerate(TIMES)
        ],
    )
    results = {
        "stopping_times": TIMES,
        "hard_ratios": HARD_RATIOS,
        "temperatures": TEMPERATURES,
        "student_error": student,
        "teacher_error": teacher,
        "hard_label_effect": effect,
    }
    save(draw(student, teacher, effect), results, arguments, "fig5")
