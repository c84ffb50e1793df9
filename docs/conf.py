"""Sphinx configuration."""

import sklearn_kd

project = "sklearn_kd"
author = "The sklearn_kd developers"
copyright = "2026, the sklearn_kd developers"
version = release = sklearn_kd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
autosummary_generate = True
numpydoc_show_class_members = False
# Labels of scikit-learn's own documentation in the docstrings of inherited methods.
suppress_warnings = ["ref.ref"]
numpydoc_xref_param_type = False
default_role = "literal"
exclude_patterns = ["_build", "examples"]
html_theme = "alabaster"
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "remove_config_comments": True,
}
