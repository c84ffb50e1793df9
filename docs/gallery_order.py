"""The order of the examples in the gallery: what to train first, certificates last."""

ORDER = (
    "plot_first_plan.py",
    "plot_plan.py",
    "plot_wrong_labels.py",
    "plot_network.py",
    "plot_grid_search.py",
    "plot_soft_ratio.py",
    "plot_hard_labels.py",
    "plot_recipes.py",
    "plot_checkpoints.py",
    "plot_how_many_rows.py",
    "plot_certificates.py",
)


class GalleryOrder:
    """The key by which sphinx-gallery sorts the files of the one folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name):
        return ORDER.index(name)
