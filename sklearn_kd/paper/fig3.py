"""Fig. 3: data inefficiency against task difficulty, and against an imperfect teacher."""

import numpy as np
import torch

from sklearn_kd.datasets import make_gaussian_mixture_logits
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import data_inefficiency
from sklearn_kd.paper._common import over_runs, print_table, published, pyplot, save

MODES = (22, 103, 1000)
FLIP_PROBABILITIES = (0.0, 1.71e-3, 1.13e-2)
WIDTH = (0.05, 0.7)  # of the modes, for the smallest number of them
WINDOW = 2.0  # ratio of sizes over which the data inefficiency is smoothed


def width_of_modes(n_modes):
    """Return widths that shrink as n_modes^(-1/4), so that more modes make a harder task."""
    return np.multiply(WIDTH, (MODES[0] / n_modes) ** 0.25)


def draw_tasks(X, n_tasks, rng):
    """Return the effective logits (n, n_tasks) of every curve of the figure, by curve."""

    def mixtures(n_modes):
        width = width_of_modes(n_modes)
        seeds = rng.integers(2**31, size=n_tasks)
        made = [
            make_gaussian_mixture_logits(1, n_modes=n_modes, width=width, random_state=int(seed))
            for seed in seeds
        ]
        return np.stack([task.function(X) for task in made], axis=1)

    z = mixtures(MODES[0])
    flips = rng.uniform(size=z.shape)
    curves: dict[tuple[str, float | str], np.ndarray] = {("modes", q): mixtures(q) for q in MODES}
    curves |= {("flips", p): np.where(flips < p, -z, z) for p in FLIP_PROBABILITIES}
    curves["references", "zero"] = np.zeros_like(z)
    curves["references", "random"] = rng.standard_normal(z.shape)
    # Soft ratio → 0: the teacher no longer matters, and z_eff is nearly ± a constant.
    hard = effective_logits(z.ravel(), z.ravel() > 0, soft_ratio=0.01, temperature=2.0)
    curves["references", "hard labels"] = hard.reshape(z.shape)
    return curves


def run(seed, n_rows, n_tasks):
    """Return ‖Δ_m‖ of the students trained on m = 1…n rows, (n_tasks, n), for every curve."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, 2))
    # The initial network z₀ is a draw from the NNGP prior, another one for each task.
    prior = np.linalg.cholesky(NTK(kind="nngp")(X))
    z_0 = prior @ rng.standard_normal((n_rows, n_tasks))
    # One factor of the tangent kernel serves every curve, task and training-set size.
    frame = TangentFrame(NTK().to_torch(), torch.as_tensor(X))

    norms = {}
    for curve, z_eff in draw_tasks(X, n_tasks, rng).items():
        # The random task fixes Δz = z_eff − z₀ itself.
        change = z_eff if curve == ("references", "random") else z_eff - z_0
        q = frame.coordinates(torch.as_tensor(change))
        norms[curve] = q.square().cumsum(dim=0).sqrt().T.numpy()
    return norms


def summarize(runs, sizes):
    """Return one result per curve: 𝓘 smoothed with its standard error, and Eq. 10 as it stands."""
    results = []
    for group, value in runs[0]:
        name = value if isinstance(value, str) else f"{value:g}"
        norms = [run[group, value] for run in runs]
        over_all = np.concatenate(norms)
        single = [data_inefficiency(one, sizes, window=WINDOW) for one in norms]
        results.append(
            {
                "group": group,
                "name": name,
                "data_inefficiency": data_inefficiency(over_all, sizes, window=WINDOW),
                "standard_error": np.std(single, axis=0, ddof=1) / np.sqrt(len(single)),
                "single_step": data_inefficiency(over_all, sizes),
                "published": published("fig3")[group].get(name),
            }
        )
    return results


def table_row(result, n_sizes):
    """Return the cells of a curve, published and ours."""
    theirs = result["published"] or [None] * n_sizes
    pairs = zip(theirs[:n_sizes], result["data_inefficiency"], strict=True)
    return [f"{result['group']}: {result['name']}", *pairs]


def draw(results, sizes):
    """Draw the data inefficiency of tasks, and of flipped teachers."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained", sharey=True)
    panels = {
        "Number of modes": ("modes", "{} modes"),
        "Imperfect teacher: share of flipped signs": ("flips", "$p_\\mathrm{{flip}}$ = {}"),
    }
    for axis, (title, (shown, label)) in zip(axes, panels.items(), strict=True):
        styles = {shown: plt.cm.viridis([0.0, 0.45, 0.8]), "references": ["0.5"] * 3}
        for group, colors in styles.items():
            members = [r for r in results if r["group"] == group]
            dashes = ["-"] * 3 if group == shown else [":", "--", "-."]
            for result, color, dash in zip(members, colors, dashes, strict=True):
                name = label.format(result["name"]) if group == shown else result["name"]
                ours, error = result["data_inefficiency"], result["standard_error"]
                axis.plot(sizes, ours, dash, color=color, label=name)
                axis.fill_between(sizes, ours - error, ours + error, color=color, alpha=0.2, lw=0)
                if result["published"]:
                    theirs = result["published"][: len(sizes)]
                    axis.plot(sizes, theirs, "o", color=color, markersize=5)
        axis.plot([], [], "o", color="0.5", label="published")
        axis.set(title=title, xlabel="training rows $n$", xscale="log", ylim=(0, 1.1))
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=2, loc="upper left")
    axes[0].set_ylabel(r"data inefficiency $\mathcal{I}(n)$")
    return figure


def main(arguments):
    """Compute the figure, and write it."""
    sizes = published("fig3")["sizes"][: 6 if arguments.quick else 7]
    n_runs, n_tasks = (10, 10) if arguments.quick else (20, 10)
    n_rows = int(np.ceil(sizes[-1] * np.sqrt(WINDOW)))
    runs = over_runs(lambda seed: run(seed, n_rows, n_tasks), n_runs, arguments, "Fig. 3")
    results = summarize(runs, sizes)
    rows = [table_row(result, len(sizes)) for result in results]
    print_table("Fig. 3, 𝓘(n): published | ours", ["curve", *map(str, sizes)], rows)
    save(draw(results, sizes), {"sizes": sizes, "curves": results}, arguments, "fig3")
