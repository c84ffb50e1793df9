"""Fig. 1: effective logits against the teacher's logits, for right and wrong teachers."""

import numpy as np

from sklearn_kd.distillation import effective_logits
from sklearn_kd.paper._common import print_table, published, pyplot, save

TEMPERATURE = 5.0  # of the left panel, where the soft ratio varies
SOFT_RATIO = 0.05  # of the right panel, where the temperature varies
TEACHERS = {"right_teacher": 1, "wrong_teacher": -1}  # sign of the label against the logit


def curve(z_t, side, value, label_sign):
    """Return z_eff at the teacher's logits z_t, whose labels are 1{± z_t > 0}."""
    soft_ratio, temperature = (value, TEMPERATURE) if side == "left" else (SOFT_RATIO, value)
    labels = (label_sign * np.asarray(z_t) > 0).astype(int)
    return effective_logits(z_t, labels, soft_ratio=soft_ratio, temperature=temperature)


def is_comparable(side, value):
    """Tell whether the published curve is that of a converged optimiser."""
    return value != 0.01 if side == "left" else value >= 2


def compare(curves):
    """Return one result per published curve: both at its points, and the largest difference."""
    results = []
    for side, by_value in curves.items():
        for value, by_teacher in by_value.items():
            for teacher, (z_t, z_eff) in by_teacher.items():
                ours = curve(z_t, side, float(value), TEACHERS[teacher])
                results.append(
                    {
                        "side": side,
                        "value": float(value),
                        "teacher": teacher,
                        "is_comparable": is_comparable(side, float(value)),
                        "teacher_logits": z_t,
                        "published": z_eff,
                        "ours": ours,
                        "largest_difference": np.abs(ours - z_eff).max(),
                    }
                )
    return results


def table_row(result):
    """Return the cells of a curve: published and ours, near z_t = -5 and 5."""
    symbol = "ρ" if result["side"] == "left" else "T"
    at = [int(np.abs(np.subtract(result["teacher_logits"], z)).argmin()) for z in (-5, 5)]
    return [
        f"{symbol} = {result['value']:.3g}, {result['teacher'].replace('_', ' ')}",
        *((result["published"][i], result["ours"][i]) for i in at),
        result["largest_difference"],
        "yes" if result["is_comparable"] else "no",
    ]


def draw(results):
    """Draw both panels, the published points on top of the curves."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), layout="constrained", sharey=True)
    titles = {
        "left": f"Soft ratio ρ, at temperature T = {TEMPERATURE:g}",
        "right": f"Temperature T, at soft ratio ρ = {SOFT_RATIO:g}",
    }
    for axis, (side, title) in zip(axes, titles.items(), strict=True):
        values = sorted({r["value"] for r in results if r["side"] == side})
        colors = dict(zip(values, plt.cm.viridis(np.linspace(0, 0.9, len(values))), strict=True))
        for value in values:
            label: str | None = f"{'ρ' if side == 'left' else 'T'} = {value:.3g}"
            for teacher, label_sign in TEACHERS.items():
                style = "-" if teacher == "right_teacher" else "--"
                for half in (np.linspace(-15, -1e-9, 400), np.linspace(1e-9, 15, 400)):
                    z_eff = curve(half, side, value, label_sign)
                    axis.plot(half, z_eff, style, color=colors[value], label=label)
                    label = None
        for result in (r for r in results if r["side"] == side):
            marker = "o" if result["is_comparable"] else "x"
            points = result["teacher_logits"], result["published"]
            axis.plot(*points, marker, color=colors[result["value"]], markersize=3.5, alpha=0.6)
        axis.plot([], [], "-", color="0.4", label="right teacher")
        axis.plot([], [], "--", color="0.4", label="wrong teacher")
        axis.plot([], [], "o", color="0.4", markersize=3.5, label="published")
        axis.plot([], [], "x", color="0.4", markersize=3.5, label="published, not converged")
        axis.set(title=title, xlabel="teacher's logit $z_t$", ylim=(-16, 16))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    axes[0].set_ylabel(r"effective logit $z_\mathrm{eff}$")
    return figure


def main(arguments):
    """Compute the figure, and write it."""
    results = compare(published("fig1"))
    header = ["curve", "at z_t ≈ −5", "at z_t ≈ 5", "largest difference", "comparable"]
    print_table("Fig. 1, z_eff: published | ours", header, map(table_row, results))
    worst = max(r["largest_difference"] for r in results if r["is_comparable"])
    print(f"Largest difference over the comparable curves: {worst:.3f}")
    save(draw(results), {"curves": results, "largest_difference": worst}, arguments, "fig1")
