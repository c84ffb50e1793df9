"""How close a trained network is to its linearization: an MLP over width and learning rate.

The student is an MLP of Eq. 1 (NTK parametrisation), trained on Eq. 2 by gradient descent with
momentum on all rows until its training logits are the effective ones (Eq. 3). Two closed forms
(Eq. 4) stand beside it: with the infinite-width kernel Θ, and with the tangent kernel of the very
network before training. Rows are MNIST images of 4 and 9.

"centred" students are f(x; w) − f(x; w₀), which are zero before training. Only they can be
compared with the infinite width, whose initial outputs z₀ are zero by choice: without centring, a
student of whatever width starts from a random function of size 1, which training does not wholly
remove between the rows. "plain" students are f(x; w), and are compared with
z₀(x) + Θ(x, X) Θ(X, X)⁻¹(z_eff − z₀).
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _networks import Clock, mean_and_error, or_stop, parser, print_table, report
from models import MLP
from power_law import slopes
from sklearn.datasets import fetch_openml
from trainer import Training, grid, train_grid

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.kernels import NTK, EmpiricalNTK

SOFT_RATIO, TEMPERATURE = 0.8, 2.0
N_TEACHER, N_TEST = 1000, 500
COMPARISONS = {  # what is compared with what, and how it is called
    "trained_infinite": "trained − infinite-width kernel",
    "trained_empirical": "trained − own kernel at w₀",
    "empirical_infinite": "own kernel at w₀ − infinite-width kernel",
}
COLORS = {"trained_infinite": "C0", "trained_empirical": "C1", "empirical_infinite": "C2"}
TICKS = [0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2]


def parse_arguments():
    options = parser(__doc__)
    add = options.add_argument
    add("--rows", type=int, nargs="+", default=[32, 8], help="rows of a student")
    add("--widths", type=int, nargs="+", default=[32, 128, 512, 2048])
    add("--depth", type=int, default=2, help="hidden layers")
    add("--learning-rates", type=float, nargs="+", default=[0.3, 3.0, 1.0])
    add("--momentum", type=float, default=0.9)
    add("--tolerance", type=float, default=0.01, help="of the training logits, root mean square")
    add("--epochs", type=int, default=4000, help="at most")
    add("--seeds", type=int, default=3)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rows, arguments.widths, arguments.learning_rates = [16], [16, 64, 256], [0.3]
        arguments.seeds = 2
    return arguments


def four_or_nine(folder):
    """Return MNIST images of 4 and 9 as standardised rows, and whether they are a 9."""
    if folder is None:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True)
        y = y.astype(int)
    else:
        with np.load(folder / "mnist" / "mnist.npz") as file:
            X, y = file["X_train"].reshape(-1, 784), file["y_train"]
    pair = np.isin(y, (4, 9))
    X = X[pair] / 255.0
    return (X - X.mean()) / X.std(), (y[pair] == 9).astype(int)


def teacher_logits(X, y, arguments):
    """Return the teacher's logits on the students' rows, kept in a file.

    Students are trained in several calls, perhaps by several versions of the library, and must all
    see the same targets to the last bit.
    """
    n_rows = max(arguments.rows)
    file = arguments.output / f"linearization_{arguments.depth}" / f"teacher_{n_rows}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        teacher = NTKTeacher(NTK(depth=arguments.depth), stopping_time=100.0)
        teacher.fit(X[:N_TEACHER], y[:N_TEACHER])
        np.save(file, teacher.decision_function(X[N_TEACHER : N_TEACHER + n_rows]))
    return np.load(file)


def compare(X, y, z_t, X_test, setting, arguments, clock):
    """Return the distances of one setting, (n_seeds,) each, and how well training converged."""
    n_rows, width, learning_rate, centred = setting

    def build(generator):
        return MLP(X.shape[1], width, arguments.depth, 1, generator)

    training = Training(
        learning_rate,
        epochs=arguments.epochs,
        momentum=arguments.momentum,
        tolerance=arguments.tolerance,
        check_every=25,
        centred=centred,
    )
    seeds = range(arguments.seeds)
    name = f"{n_rows}_{width}_{learning_rate:g}_{'centred' if centred else 'plain'}"
    logits, epochs = or_stop(
        train_grid(
            build,
            grid([SOFT_RATIO], [TEMPERATURE], seeds),
            training,
            (X, y, z_t),
            evaluate=np.concatenate([X, X_test]),
            folder=arguments.output / f"linearization_{arguments.depth}" / name,
            seconds=clock.left(),
            device=arguments.device,
            log=lambda line: print(name, line),
        )
    )
    own = []
    for seed in seeds:
        module = build(torch.Generator().manual_seed(seed)).double()
        student = closed_form(EmpiricalNTK(module), X, y, z_t, "zero" if centred else "network")
        own.append(student.decision_function(X_test))
    infinite = closed_form(NTK(depth=arguments.depth), X, y, z_t, "zero")
    limit = infinite.decision_function(X_test)
    pairs = {"trained_empirical": (logits[:, n_rows:], np.array(own))}
    if centred:
        pairs["trained_infinite"] = (logits[:, n_rows:], limit)
        pairs["empirical_infinite"] = (np.array(own), limit)
    gap = logits[:, :n_rows] - infinite.effective_logits_
    return {
        "rows": n_rows,
        "width": width,
        "learning_rate": learning_rate,
        "centred": centred,
        "epochs": epochs,
        "gap": np.sqrt(np.mean(gap**2, axis=1)),
        "rms": {k: np.sqrt(np.mean((a - b) ** 2, axis=1)) for k, (a, b) in pairs.items()},
        "disagreement": {k: np.mean(a * b < 0, axis=1) for k, (a, b) in pairs.items()},
        "rms_logit": np.sqrt(np.mean(limit**2)),
        "smallest_eigenvalue": np.linalg.eigvalsh(NTK(depth=arguments.depth)(X))[0],
    }


def closed_form(kernel, X, y, z_t, init):
    student = LinearizedKDStudent(
        kernel=kernel, soft_ratio=SOFT_RATIO, temperature=TEMPERATURE, init=init
    )
    return student.fit(X, y, teacher_logits=z_t)


def curves(results):
    """Return the results by (rows, learning rate, centred), each ordered by width."""
    groups = {}
    for result in results:
        key = result["rows"], result["learning_rate"], result["centred"]
        groups.setdefault(key, []).append(result)
    return groups


def along_width(group, quantity, comparison):
    """Return one quantity of a curve, (n_seeds, n_widths)."""
    return np.transpose([result[quantity][comparison] for result in group])


def draw(results, widths):
    groups = curves(results)
    all_rows = sorted({key[0] for key in groups})
    markers = dict(zip(sorted({key[1] for key in groups}), "vosD^", strict=False))
    figure, axes = plt.subplots(
        1,
        len(all_rows),
        figsize=(4.6 * len(all_rows) + 3.4, 4.6),
        layout="constrained",
        sharey=True,
    )
    axes = np.atleast_1d(axes)
    lines = {}  # by label, over all panels
    for axis, n_rows in zip(axes, all_rows, strict=True):
        largest = 0
        members = [(key, group) for key, group in groups.items() if key[0] == n_rows]
        for number, ((_, rate, centred), group) in enumerate(members):
            for comparison in group[0]["rms"]:
                label, style = COMPARISONS[comparison], {"marker": "x", "ls": ":"}
                if comparison != "empirical_infinite":
                    label += f", learning rate {rate:g}" + ("" if centred else ", plain")
                    style = {"marker": markers[rate], "ls": "-" if centred else "--"}
                elif number:
                    continue  # the same for every learning rate
                mean, bar = mean_and_error(along_width(group, "rms", comparison))
                style |= {"color": COLORS[comparison], "ms": 5, "capsize": 2}
                lines[label] = axis.errorbar(widths, mean, bar, **style)
                largest = max(largest, mean[0])
        guide = 1.3 * largest * np.sqrt(widths[0] / np.array(widths))
        (lines["∝ 1/√width"],) = axis.plot(widths, guide, color="0.6", lw=1)
        axis.set(title=f"{n_rows} training rows", xlabel="width", xscale="log", yscale="log")
        axis.set_xticks(widths, widths)
        axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    values = np.concatenate([line.get_ydata() for axis in axes for line in axis.lines[::3]])
    axes[0].set_ylim(0.8 * values.min(), 1.2 * values.max())
    axes[0].set_ylabel("distance of test logits (root mean square)")
    figure.legend(lines.values(), lines.keys(), fontsize=8, loc="outside right center")
    return figure


def main():
    arguments = parse_arguments()
    clock = Clock(arguments.seconds)
    X, y = four_or_nine(arguments.data)
    z_t_of_rows = teacher_logits(X, y, arguments)
    X_test = X[-N_TEST:]

    # The first learning rate on all numbers of rows, the others on the first number; plain students
    # at the last.
    first_rate, first_rows = arguments.learning_rates[0], arguments.rows[0]
    kinds = [(n, first_rate, True) for n in arguments.rows]
    kinds += [(first_rows, rate, True) for rate in arguments.learning_rates[1:]]
    kinds += [(first_rows, arguments.learning_rates[-1], False)]
    results = []
    for n_rows, rate, centred in kinds:
        rows = slice(N_TEACHER, N_TEACHER + n_rows)
        z_t = z_t_of_rows[:n_rows]
        for width in arguments.widths:
            setting = n_rows, width, rate, centred
            results.append(compare(X[rows], y[rows], z_t, X_test, setting, arguments, clock))

    for quantity, title in [("rms", "Distance of test logits"), ("disagreement", "Disagreement")]:
        table = []
        for (n_rows, rate, centred), group in curves(results).items():
            for comparison in group[0][quantity]:
                values = along_width(group, quantity, comparison)
                mean, bar = mean_and_error(values)
                cells = [f"{m:.3f} ± {b:.3f}" for m, b in zip(mean, bar, strict=True)]
                if quantity == "rms":
                    slope = slopes(arguments.widths, values)
                    last = slopes(arguments.widths[-2:], values[:, -2:])
                    cells += ["{:.2f} ± {:.2f}".format(*mean_and_error(s)) for s in (slope, last)]
                kind = "" if centred else "plain: "
                table.append([str(n_rows), f"{rate:g}", kind + COMPARISONS[comparison], *cells])
        header = ["rows", "learning rate", "compared", *map(str, arguments.widths)]
        if quantity == "rms":
            header += ["slope", "last step"]
        print_table(f"{title} against width, {arguments.seeds} seeds", header, table)
    for (n_rows, rate, centred), group in curves(results).items():
        print(
            f"{n_rows} rows, learning rate {rate:g}{'' if centred else ', plain'}: "
            f"RMS logit {group[0]['rms_logit']:.2f}, "
            f"smallest eigenvalue {group[0]['smallest_eigenvalue']:.3f}, "
            f"epochs {[int(r['epochs'].max()) for r in group]}, "
            f"gap at most {max(r['gap'].max() for r in group):.3f}"
        )
    if arguments.plot:
        draw(results, arguments.widths).savefig(arguments.plot, dpi=110)
    report({"results": results}, arguments, "linearization")


if __name__ == "__main__":
    main()
