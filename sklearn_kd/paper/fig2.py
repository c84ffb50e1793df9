"""Fig. 2: transfer risk, distribution of angles, and angle to the oracle, over the soft ratio."""

from typing import NamedTuple

import numpy as np

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.datasets import make_gaussian_mixture_logits
from sklearn_kd.distillation import effective_logits
from sklearn_kd.kernels import NTK
from sklearn_kd.metrics import (
    accumulative_angle_distribution,
    feature_angles,
    transfer_risk_bound,
    weight_change_angles,
)
from sklearn_kd.paper._common import mean_and_error, over_runs, print_table, published, pyplot, save

SOFT_RATIOS = np.array([1.0, 0.96, 0.7, 0.35])
TEMPERATURE = 5.0
N_MODES, WIDTH = 1000, (0.05, 0.7)
BETAS = np.linspace(1.5, np.pi / 2, 143)


class Run(NamedTuple):
    """One run's results, each with a line per soft ratio."""

    transfer_risk: np.ndarray  # (4, n_sizes) R(n)
    angle: np.ndarray  # (4, n_sizes) α(Δ_ŵ,n, Δ_w*), radians
    distribution: np.ndarray  # (4, n_betas) p(β)
    bound: np.ndarray  # (4, n_sizes) Theorem 1's upper bound on R(n)


def run(seed, sizes, n_pool, n_test):
    """Train on the first rows of a pool of ``n_pool``; the oracle knows all of them."""
    task = make_gaussian_mixture_logits(
        n_pool + n_test, n_modes=N_MODES, width=WIDTH, random_state=seed
    )
    X, z_t, y = task.X, task.logits, task.y  # the teacher is the truth
    X_new, z_t_new = X[n_pool:], z_t[n_pool:]

    # One factor, that of the pool's kernel matrix, serves every size and soft ratio.
    student = LinearizedKDStudent(temperature=TEMPERATURE)
    student.fit(X[:n_pool], y[:n_pool], teacher_logits=z_t[:n_pool])
    path = student.prefix_path(
        X_new, teacher_logits=z_t_new, sizes=sizes, param_grid={"soft_ratio": SOFT_RATIOS}
    )

    by_soft_ratio = []
    for soft_ratio in SOFT_RATIOS:
        z_eff = effective_logits(z_t, y, soft_ratio=soft_ratio, temperature=TEMPERATURE)
        oracle = weight_change_angles(student.tangent_frame(), z_eff[:n_pool], sizes=sizes)
        angles = feature_angles(z_eff[n_pool:], NTK().diag(X_new), oracle.centred_oracle_norm)
        distribution = accumulative_angle_distribution(angles, BETAS)
        bound = transfer_risk_bound(angles, oracle.centred)
        by_soft_ratio.append((oracle.to_oracle, distribution, bound))
    angle, distribution, bound = map(np.array, zip(*by_soft_ratio, strict=True))
    return Run(path.transfer_risk[:, 0], angle, distribution, bound)


def slopes(risks, sizes):
    """Return the slope of ln E[R(n)] over ln n by soft ratio, with its jackknife error.

    Single runs may have no error left at the largest sizes; leaving one run out keeps the rest.
    """

    def slope(some):
        return np.polyfit(np.log(sizes), np.log(some.mean(axis=0)).T, 1)[0]

    left_out = np.array([slope(np.delete(risks, i, axis=0)) for i in range(len(risks))])
    variance = (len(risks) - 1) * left_out.var(axis=0)
    return slope(risks), np.sqrt(variance)


def summarize(runs, sizes):
    """Return the figure's numbers: means over the runs by soft ratio, with standard errors."""
    mean, error = zip(*map(mean_and_error, zip(*runs, strict=True)), strict=True)
    slope, slope_error = slopes(np.array([run.transfer_risk for run in runs]), sizes)
    return {
        "sizes": sizes,
        "soft_ratios": SOFT_RATIOS,
        "slope": slope,
        "slope_error": slope_error,
        "betas": BETAS,
        **Run(*mean)._asdict(),
        **{f"{name}_error": values for name, values in Run(*error)._asdict().items()},
    }


def published_angles(soft_ratio, n_sizes):
    """Return the published α(n) of a soft ratio, None where there is none."""
    figure = published("fig2")
    shown = dict(zip(figure["soft_ratios"], figure["angle_to_oracle"], strict=True))
    angles = shown.get(soft_ratio, [])[:n_sizes]
    return [*angles, *[None] * (n_sizes - len(angles))]


def print_tables(results):
    """Print risks, angles and slopes, the published ones beside ours."""
    sizes = results["sizes"]
    header = ["soft ratio", *map(str, sizes)]
    rows = [
        [f"{rho:g}", f"{slope:.2f} ± {error:.2f}", *risks]
        for rho, slope, error, risks in zip(
            SOFT_RATIOS,
            results["slope"],
            results["slope_error"],
            results["transfer_risk"],
            strict=True,
        )
    ]
    print_table(
        "Transfer risk R(n), and its log-log slope", [header[0], "slope", *header[1:]], rows
    )
    rows = [
        [f"{rho:g}", *zip(published_angles(rho, len(sizes)), angles, strict=True)]
        for rho, angles in zip(SOFT_RATIOS, results["angle"], strict=True)
    ]
    print_table("Angle to the oracle: published | ours", header, rows)
    print(
        f"Theorem 1's bound on R(n): {results['bound'].min():.4g} at the lowest, over all n and ρ."
    )


def draw(results):
    """Draw the risk, the distribution of angles, and the angles of the weight changes."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    risk_axis, distribution_axis, angle_axis = axes
    sizes = results["sizes"]
    colors = plt.cm.viridis(np.linspace(0, 0.85, len(SOFT_RATIOS)))
    for i, (soft_ratio, color) in enumerate(zip(SOFT_RATIOS, colors, strict=True)):
        name = f"ρ = {soft_ratio:g}"
        risk, error = results["transfer_risk"][i], results["transfer_risk_error"][i]
        label = f"{name}, slope {results['slope'][i]:.2f} ± {results['slope_error'][i]:.2f}"
        risk_axis.errorbar(sizes, risk, error, color=color, capsize=2, label=label)
        distribution_axis.plot(BETAS, results["distribution"][i], color=color, label=name)
        angle_axis.plot(sizes, results["angle"][i], color=color, label=name)
        theirs = published_angles(soft_ratio, len(sizes))
        angle_axis.plot(sizes, np.array(theirs, dtype=float), "o", color=color)
    angle_axis.plot([], [], "o", color="0.5", label="published")
    distribution_axis.axvline(np.pi / 2, color="0.5", linestyle=":", label="π/2")
    risk_axis.set(title="Transfer risk", xlabel="training rows $n$", ylabel="$R(n)$")
    risk_axis.set(xscale="log", yscale="log")
    distribution_axis.set(title="Distribution of angles", xlabel="angle β", ylabel="p(β)")
    angle_axis.set(title="Angle to the oracle", xlabel="training rows $n$", xscale="log")
    angle_axis.set_ylabel(r"$\alpha(\Delta_{\hat{w},n}, \Delta_{w_*})$")
    for axis in (risk_axis, angle_axis):
        axis.set_xticks(sizes, sizes)
        axis.tick_params(axis="x", which="minor", bottom=False)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def main(arguments):
    """Compute the figure, and write it."""
    n_runs, n_pool, n_test = (5, 3072, 2000) if arguments.quick else (12, 8192, 4000)
    sizes = 32 * 2 ** np.arange(6 if arguments.quick else 8)
    runs = over_runs(lambda seed: run(seed, sizes, n_pool, n_test), n_runs, arguments, "Fig. 2")
    results = summarize(runs, sizes)
    print_tables(results)
    save(draw(results), results, arguments, "fig2")
