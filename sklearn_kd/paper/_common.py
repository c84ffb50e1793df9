"""What the figures share: a progress bar, tables, and files written."""

import importlib
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def pyplot():
    """Return `matplotlib.pyplot`, imported only now.

    Raises
    ------
    ImportError
        If it, or what shows tables, is not installed.
    """
    try:
        import matplotlib.pyplot as plt

        importlib.import_module("rich")  # which shows tables and progress, further down
    except ImportError as error:
        raise ImportError(
            "The figures of the paper need matplotlib and rich; install them with "
            "pip install 'sklearn_kd[plot,progress]'."
        ) from error
    return plt


def published(figure):
    """Return the numbers that were read off the paper's figure, such as ``published("fig2")``."""
    return json.loads((HERE / "published.json").read_text())[figure]


def over_runs(run, n_runs, arguments, description):
    """Return ``[run(seed), ...]`` for consecutive seeds, with a progress bar."""
    from rich.progress import track

    seeds = range(arguments.seed, arguments.seed + n_runs)
    return [run(seed) for seed in track(seeds, description, transient=True)]


def mean_and_error(values):
    """Return the mean over the runs (first axis), and its standard error."""
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def print_table(title, header, rows):
    """Print ``rows`` of cells; a pair (published, ours) becomes the cell "published | ours"."""
    from rich.console import Console
    from rich.table import Table

    def cell(value):
        if isinstance(value, tuple):
            return " | ".join(map(cell, value))
        if value is None:
            return "–"
        return value if isinstance(value, str) else f"{value:.3g}"

    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    Console(width=160).print(table)


def save(figure, results, arguments, name):
    """Write ``name``.png and ``name``.json into the output folder."""

    def plain(value):
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)

    figure.savefig(arguments.output / f"{name}.png", dpi=110)
    text = json.dumps({"arguments": vars(arguments), **results}, default=plain, indent=1)
    (arguments.output / f"{name}.json").write_text(text + "\n")
    pyplot().close(figure)
    print(f"Wrote {name}.png and {name}.json to {arguments.output}.")
