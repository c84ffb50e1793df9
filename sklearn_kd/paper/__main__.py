"""The figures of the paper, beside the published numbers, from a command line."""

import argparse
from pathlib import Path

from sklearn_kd.paper import fig1, fig2, fig3, fig4, fig5
from sklearn_kd.paper._common import pyplot

FIGURES = {"fig1": fig1, "fig2": fig2, "fig3": fig3, "fig4": fig4, "fig5": fig5}


def main(argv: list[str] | None = None) -> None:
    """Compute figures, print the published numbers beside ours, and write PNG and JSON."""
    titles = "\n".join(
        f"  {name}  {(figure.__doc__ or name).splitlines()[0]}" for name, figure in FIGURES.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m sklearn_kd.paper",
        description=f"Figures of Ji and Zhu (NeurIPS 2020), computed anew.\n\n{titles}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figure", choices=[*FIGURES, "all"], help="which, or all of them")
    parser.add_argument("--quick", action="store_true", help="fewer runs and rows")
    parser.add_argument(
        "--output", type=Path, default=Path("paper_figures"), help="folder of the files"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run")
    arguments = parser.parse_args(argv)
    pyplot().switch_backend("agg")  # nothing is shown
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in FIGURES if arguments.figure == "all" else [arguments.figure]:
        FIGURES[name].main(arguments)


if __name__ == "__main__":
    main()
