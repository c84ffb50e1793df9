"""Figure 4: what makes a task hard to distil: a long-trained teacher, and hard labels.

Left: a task in one dimension; its teacher at several stopping times, and what hard labels make of
the logits that the student is to fit. Middle: data inefficiency over the number of rows, one curve
per stopping time. Right: data inefficiency at one size over the hard ratio 1 − ρ.
"""

import numpy as np
import torch

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.datasets import make_gaussian_mixture_logits
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import data_inefficiency
from sklearn_kd.paper._common import mean_and_error, over_runs, print_table, published, pyplot, save

KERNEL = NTK(depth=3)
TEMPERATURE = 5.0
TIMES = [100, 300, 1000, 3000, 10_000, 30_000, 100_000]  # of the teacher: learning rate × epochs
RIGHT = [2, 4, 6]  # those of the right panel; the table sets the middle one beside the paper
PUBLISHED = published("fig4")
HARD_RATIOS = np.array([*PUBLISHED["hard_ratios"], 0.03, 0.1, 0.3, 0.9])
WINDOW = 2.0  # 𝓘(n) is the slope of ln‖Δ‖ from n/√2 to √2 n: a single step is noisy
N_TEACHER = 3000


def run(seed, sizes):
    """Return 𝓘 at every stopping time × size (ρ = 1), 𝓘(sizes[-1]) over 1 − ρ, teacher's error."""
    n_rows = int(np.ceil(sizes[-1] * np.sqrt(WINDOW)))
    task = make_gaussian_mixture_logits(N_TEACHER + n_rows, random_state=seed)
    teacher = NTKTeacher(KERNEL, stopping_time=TIMES)
    teacher.fit(task.X[:N_TEACHER], task.y[:N_TEACHER])
    X, y = task.X[N_TEACHER:], task.y[N_TEACHER:]
    staged = np.stack(list(teacher.staged_decision_function(X)))

    # One factor of the student's rows serves every size, teacher and soft ratio.
    frame = TangentFrame(KERNEL.to_torch(), torch.as_tensor(X))

    def inefficiency(logits):
        norms = frame.prefix_norms(torch.as_tensor(logits))
        return data_inefficiency(norms.numpy(), sizes, window=WINDOW)

    soft = [inefficiency(z_t) for z_t in staged]
    mixed = [
        [
            inefficiency(
                effective_logits(z_t, y, soft_ratio=1 - hard_ratio, temperature=TEMPERATURE)
            )[-1]
            for hard_ratio in HARD_RATIOS
        ]
        for z_t in staged[RIGHT]
    ]
    return np.array(soft), np.array(mixed), ((staged > 0) != y).mean(axis=1)


def draw_one_dimension(upper, lower):
    """Draw a 1-D task: its teacher at three stopping times, and three students of the first."""
    times, hard_ratios = [100, 1000, 10_000], [0.0, 0.01, 0.05]
    task = make_gaussian_mixture_logits(100, n_features=1, n_modes=8, random_state=17)
    teacher = NTKTeacher(KERNEL, stopping_time=times).fit(task.X, task.y)
    grid, rows = np.linspace(-2, 2, 801)[:, None], np.linspace(-2, 2, 65)[:, None]

    for time, z in zip(times, teacher.staged_decision_function(grid), strict=True):
        upper.plot(grid, z, label=f"stopping time {time:,}")
    y, z_t = task.function(rows) > 0, next(teacher.staged_decision_function(rows))
    for color, hard_ratio in zip(["C0", "C3", "C5"], hard_ratios, strict=True):
        student = LinearizedKDStudent(
            kernel=KERNEL, soft_ratio=1 - hard_ratio, temperature=TEMPERATURE
        ).fit(rows, y, teacher_logits=z_t)
        lower.plot(grid, student.decision_function(grid), color=color, linewidth=1)
        lower.plot(
            rows, student.effective_logits_, ".", color=color, label=f"1 − ρ = {hard_ratio:g}"
        )
    for axes in (upper, lower):
        axes.axhline(0, color="0.5", linewidth=0.8)
        is_positive = task.function(grid) > 0
        span = axes.get_xaxis_transform()  # x in data, y in the axes' height
        axes.fill_between(grid[:, 0], 0, 1, where=is_positive, transform=span, color="0.92")
    upper.legend(fontsize=8, loc="lower right")
    lower.legend(fontsize=8, loc="lower right", title=f"stopping time {times[0]}", title_fontsize=8)
    upper.set(title="One dimension (grey: true class is 1)", ylabel="teacher $z_t$")
    upper.tick_params(labelbottom=False)
    lower.set(xlabel="x", ylabel="student, $z_\\mathrm{eff}$ (dots)")


def draw(soft, mixed, sizes, errors):
    """Draw a task, and the data inefficiency by stopping time and by hard ratio."""
    plt = pyplot()
    figure = plt.figure(figsize=(15, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    upper = figure.add_subplot(grid[0, 0])
    draw_one_dimension(upper, figure.add_subplot(grid[1, 0], sharex=upper))

    middle = figure.add_subplot(grid[:, 1])
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(TIMES)))
    for index, (time, error) in enumerate(zip(TIMES, errors, strict=True)):
        mean, bar = mean_and_error(soft[:, index])
        label = f"{time:,} ({100 * error:.1f} %)"
        middle.errorbar(sizes, mean, bar, color=colors[index], marker="o", ms=3, label=label)
    middle.set(
        title="Pure soft labels (ρ = 1)",
        xlabel="training rows n",
        ylabel=r"data inefficiency $\mathcal{I}(n)$",
        xscale="log",
        yscale="log",
    )
    middle.legend(title="stopping time (teacher's error)", fontsize=8)

    right = figure.add_subplot(grid[:, 2])
    for curve, index in enumerate(RIGHT):
        mean, bar = mean_and_error(mixed[:, curve])
        label = f"ours, stopping time {TIMES[index]:,}"
        right.errorbar(HARD_RATIOS, mean, bar, color=colors[index], marker="o", ms=4, label=label)
    right.plot(
        PUBLISHED["hard_ratios"],
        PUBLISHED["data_inefficiency"],
        "ks",
        mfc="none",
        label="published",
    )
    right.set(
        title=f"With hard labels (T = {TEMPERATURE:g})",
        xlabel="hard ratio 1 − ρ",
        ylabel=rf"$\mathcal{{I}}({sizes[-1]})$",
        xscale="log",
    )
    right.legend(fontsize=8)
    return figure


def main(arguments):
    """Compute the figure, and write it."""
    sizes = 2 ** np.arange(5, 11 if arguments.quick else 13)
    n_runs = 3 if arguments.quick else 20
    runs = over_runs(lambda seed: run(seed, sizes), n_runs, arguments, "Figure 4")
    soft, mixed, errors = (np.stack(values) for values in zip(*runs, strict=True))

    n = sizes[-1]
    soft_mean, soft_bar = mean_and_error(soft[:, :, -1])
    rise, rise_bar = mean_and_error(np.diff(soft[:, :, -1], axis=1))  # paired: the same runs
    print_table(
        f"Fig. 4 middle: 𝓘({n}) at ρ = 1 (published: rises from stopping epoch 255 to 22015)",
        ["stopping time", "teacher's error", f"𝓘({n})", "± s.e.", "rise", "± s.e."],
        zip(
            map("{:,}".format, TIMES),
            errors.mean(axis=0),
            soft_mean,
            soft_bar,
            [None, *rise],
            [None, *rise_bar],
            strict=True,
        ),
    )
    mean, bar = mean_and_error(mixed)
    values = [*PUBLISHED["data_inefficiency"], *[None] * 4]
    print_table(
        f"Fig. 4 right: 𝓘, published at 4096 rows, ours at {n}; T = {TEMPERATURE:g}",
        ["1 − ρ", "published | ours", "± s.e.", *[f"ours, time {TIMES[i]:,}" for i in RIGHT[::2]]],
        [
            (hard_ratio, (value, mean[1, i]), bar[1, i], mean[0, i], mean[2, i])
            for i, (hard_ratio, value) in enumerate(zip(HARD_RATIOS, values, strict=True))
        ],
    )
    results = {
        "stopping_times": TIMES,
        "teacher_error": errors,
        "sizes": sizes,
        "data_inefficiency": soft,
        "hard_ratios": HARD_RATIOS,
        "data_inefficiency_hard": mixed,
    }
    save(draw(soft, mixed, sizes, errors.mean(axis=0)), results, arguments, "fig4")
