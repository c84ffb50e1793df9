"""The report of a plan: one page of HTML that needs no network."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_kd.inspection._plotting import import_pyplot
from sklearn_kd.plan._figures import height_of, pieces_of

STYLE = """
.skd { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem;
  margin: 0 auto; padding: 1rem; }
.skd h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
.skd h2 { font-size: 1.1rem; margin: 0 0 .4rem; }
.skd section { border-top: 1px solid #ddd; padding: 1rem 0; }
.skd .sub { color: #555; margin: 0 0 1rem; }
.skd .mark { font-size: .8rem; border-radius: 1rem; padding: .1rem .6rem; margin-left: .5rem;
  vertical-align: middle; font-weight: normal; white-space: nowrap; }
.skd .sure { background: #d7efe3; color: #0a4a31; }
.skd .unsure { background: #fbe8cf; color: #6b3d00; }
.skd p { margin: .2rem 0 .6rem; }
.skd img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
.skd pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem; }
.skd .scroll { overflow-x: auto; }
.skd table { border-collapse: collapse; font-size: .85rem; }
.skd td, .skd th { padding: .2rem .6rem; border-bottom: 1px solid #eee; text-align: right; }
.skd summary { cursor: pointer; color: #0a58a5; }
"""
MARKS = {True: ("sure", "the rows tell, at 90 %"), False: ("unsure", "not told apart")}
COMPARISONS = ("recipe", "hard labels", "teacher", "student", "stopping")  # that have a mark


def body(plan: Any) -> str:
    """Return the report as a piece of HTML."""
    plt = import_pyplot(type(plan))
    pieces, parts = pieces_of(plan), []
    for topic, finding in plan.findings_.items():
        mark = ""
        if topic in COMPARISONS:
            colour, meaning = MARKS[finding.is_sure]
            mark = f'<span class="mark {colour}">{meaning}</span>'
        told = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in finding.sentences)
        picture = ""
        if topic in pieces:
            picture = _picture(plan, pieces[topic], topic, plt)
        parts.append(
            f"<section><h2>{html.escape(topic.capitalize())}{mark}</h2>{told}{picture}"
            f"{_more(plan, topic)}</section>"
        )
    n_unlabelled = plan.n_rows_ - plan.n_labelled_
    return (
        f'<div class="skd"><style>{STYLE}</style><h1>Plan of a distillation</h1>'
        f'<p class="sub">{plan.n_labelled_} labelled and {n_unlabelled} unlabelled rows of '
        f"{plan.n_features_in_} features, {len(plan.classes_)} classes</p>{''.join(parts)}</div>"
    )


def _picture(plan: Any, draw: Any, topic: str, plt: Any) -> str:
    """Return a picture of the plan, as an image inside the page."""
    figure, ax = plt.subplots(figsize=(5.6, height_of(plan, topic)), layout="constrained")
    try:
        draw(plan, ax)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    finally:
        plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(topic)}" src="data:image/png;base64,{data}">'


def _more(plan: Any, topic: str) -> str:
    """Return what can be unfolded: code of the recipe, tables of cells and forecasts."""
    if topic == "recipe":
        code = html.escape(plan.recipe_.as_code("torch"))
        return (
            f"<details><summary>The loss, for your training loop</summary><pre>{code}</pre>"
            f"</details><details><summary>All cells</summary>{_table_of_cells(plan)}</details>"
        )
    if topic == "rows" and plan.forecasts_:
        tables = "".join(_table_of_forecast(one) for one in plan.forecasts_)
        return f"<details><summary>Forecasts by ρ</summary>{tables}</details>"
    return ""


def _table_of_cells(plan: Any) -> str:
    results = plan.search_.cv_results_
    rows = []
    for index in np.argsort(-results["mean_test_score"], kind="stable"):
        params = results["params"][index]
        rows.append(
            [
                f"{params['soft_ratio']:g}",
                f"{params['temperature']:g}",
                plan._teachers.named(params.get("teacher_weights")),
                f"{100 * results['mean_test_score'][index]:.2f}",
                f"{100 * results['diff_test_score'][index]:.2f}",
                f"{100 * results['stderr_diff_test_score'][index]:.2f}",
                "yes" if results["in_best_set"][index] else "",
            ]
        )
    names = ["ρ", "T", "teacher", "accuracy (%)", "less the best", "± ", "as good"]
    return _table(names, rows)


def _table_of_forecast(one: Any) -> str:
    names = ["ρ", *(f"{target} {one.curves.grows} rows" for target in one.targets)]
    rows = [
        [
            f"{rho:g}",
            *(
                f"{100 * e:.1f} ({100 * low:.1f} to {100 * high:.1f})"
                for e, low, high in zip(found.error, found.low, found.high, strict=True)
            ),
        ]
        for rho, found in one.by_ratio.items()
    ]
    return _table(names, rows)


def _table(names: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = ("".join(f"<td>{html.escape(value)}</td>" for value in row) for row in rows)
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{inside}</table></div>'


def to_html(self: Any, path: str | Path) -> None:
    """Write the report: one page that needs no network.

    Parameters
    ----------
    path : str or Path
        The file to write.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    check_is_fitted(self)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Plan of a distillation</title></head><body>{body(self)}</body></html>"
    )
    Path(path).write_text(page, encoding="utf-8")
