"""A plan from the command line: ``python -m sklearn_kd plan data.npz --teacher-logits z.npy``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from sklearn_kd.plan._plan import DistillationPlan


def main(argv: list[str] | None = None) -> None:
    """Make a plan of the arrays in files, print its summary, and write its report."""
    parser = argparse.ArgumentParser(prog="python -m sklearn_kd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="recipe, hard labels, rows and stopping for a teacher")
    add = plan.add_argument
    add("data", type=Path, help=".npz with X and y (-1: no label), and X_val and y_val if any")
    add("--teacher-logits", type=Path, nargs="+", required=True,
        help=".npy with the logits of a teacher on X; several teachers are compared")  # fmt: skip
    add("--teacher-logits-val", type=Path, nargs="+", help="the same on X_val, in the same order")
    add("--student", type=Path, help=".pt2 with a network, as torch.export.save writes it, whose "
        "number of rows is dynamic; default: infinite width")  # fmt: skip
    add("--report", type=Path, help="the HTML file to write")
    add("--seed", type=int, default=0, help="of folds and orders of the rows")
    arguments = parser.parse_args(argv)

    with np.load(arguments.data) as file:
        given = {name: file[name] for name in ("X", "y", "X_val", "y_val") if name in file}
    if missing := {"X", "y"} - set(given):
        parser.error(f"{arguments.data} holds no {' and no '.join(sorted(missing))}")
    logits = {path.stem: np.load(path) for path in arguments.teacher_logits}
    if arguments.teacher_logits_val is not None:
        files = zip(logits, arguments.teacher_logits_val, strict=True)
        given["teacher_logits_val"] = {name: np.load(path) for name, path in files}
    student = None
    if arguments.student is not None:
        student = torch.export.load(arguments.student).module()
    fitted = DistillationPlan(student, random_state=arguments.seed).fit(
        **given, teacher_logits=logits
    )
    print(fitted.summary())
    if arguments.report is not None:
        fitted.to_html(arguments.report)


if __name__ == "__main__":
    main()
