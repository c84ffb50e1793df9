"""The paper at hand: its quantities, and its figures by ``python -m sklearn_kd.paper fig2``."""

from sklearn_kd.paper._quantities import paper_quantities

__all__ = ["paper_quantities"]
