"""The figures of the paper: ``python -m sklearn_kd.paper fig2 --quick``."""
