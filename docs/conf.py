"""Sphinx configuration."""

import importlib
import logging
import sys
from pathlib import Path

import sklearn_kd

sys.path.insert(0, str(Path(__file__).parent))  # for gallery_order

project = "sklearn_kd"
author = "The sklearn_kd developers"
copyright = "2026, the sklearn_kd developers"
version = release = sklearn_kd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_parser",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
myst_heading_anchors = 3
default_role = "literal"
exclude_patterns = ["_build", "examples"]
nitpicky = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say them, in words
# The class template lists the members, each with its own section.
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Prompts and outputs are not copied with a command.
copybutton_exclude = ".linenos, .gp, .go"

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "scipy": ("https://docs.scipy.org/doc/scipy", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
intersphinx_timeout = 5  # seconds; a build without a network goes on without inventories

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_kd"
html_static_path = ["_static"]
html_css_files = ["sklearn_kd.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_start": ["navbar-logo", "version-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "show_nav_level": 1,
    "navigation_depth": 3,
    "show_prev_next": True,
    "switcher": {"json_url": "_static/switcher.json", "version_match": version},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {
    "index": [],
    "install": [],
    "whats_new": [],
    "glossary": [],
}

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "within_subsection_order": "gallery_order.GalleryOrder",
    "remove_config_comments": True,
    "show_memory": False,
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_kd",),
    "reference_url": {"sklearn_kd": None},
}

OTHER_PACKAGES = {
    "collections",
    "joblib",
    "matplotlib",
    "numpy",
    "os",
    "pathlib",
    "scipy",
    "sklearn",
    "skorch",
    "torch",
}


def is_name_of_another_package(target):
    """Tell whether ``target`` is found in one of the packages that the text may refer to."""
    parts = target.split(".")
    if parts[0] not in OTHER_PACKAGES:
        return False
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def name_without_link(app, env, node, contnode):
    """Keep as text what has no link here, but is no mistake.

    These are the names of other packages where no inventory is at hand, if they exist, and labels
    of scikit-learn's own guide in the docstrings of methods that are inherited from it.
    """
    if node.get("refdomain") == "py":
        return contnode if is_name_of_another_package(node["reftarget"]) else None
    is_label = node.get("refdomain") == "std" and node.get("reftype") in {"ref", "term"}
    return contnode if is_label and node["refdoc"].startswith("generated/") else None


def is_more_than_no_network(record):
    """Let all warnings pass but that of an inventory out of reach: names are then text."""
    return "failed to reach any of the inventories" not in record.msg


def setup(app):
    logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(is_more_than_no_network)
    app.connect("missing-reference", name_without_link, priority=900)
