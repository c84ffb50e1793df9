"""The API reference names what the public modules export, and nothing else."""

import importlib
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "docs" / "api.rst"
MODULES = [
    "datasets",
    "distillation",
    "exceptions",
    "inspection",
    "kernels",
    "linalg",
    "metrics",
    "paper",
    "solvers",
    "training",
]


def documented_names():
    """Return the dotted names that have an entry: in an autosummary, or as data."""
    text = REFERENCE.read_text(encoding="utf-8")
    entries = re.findall(r"^   ([A-Za-z_][\w.]*)$", text, re.MULTILINE)
    return entries + re.findall(r"^\.\. py:data:: ([\w.]+)$", text, re.MULTILINE)


def exported_names(module):
    name = f"sklearn_kd.{module}" if module else "sklearn_kd"
    prefix = f"{module}." if module else ""
    return {prefix + name for name in importlib.import_module(name).__all__}


@pytest.mark.parametrize("module", ["", *MODULES])
def test_reference_has_every_public_name_of(module):
    start = re.compile(rf"{module}\.\w+$" if module else r"\w+$")
    documented = {name for name in documented_names() if start.match(name)}
    assert documented == exported_names(module)


def test_reference_knows_no_other_module_and_repeats_nothing():
    names = documented_names()
    assert len(names) == len(set(names))
    assert {name.rpartition(".")[0] for name in names} == {"", *MODULES}


def test_every_public_folder_is_in_the_list():
    package = Path(importlib.import_module("sklearn_kd").__file__).parent
    sources = [*package.glob("*/__init__.py"), package / "exceptions.py"]
    with_names = {
        path.parent.name if path.name == "__init__.py" else path.stem
        for path in sources
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert with_names - {"rows"} == set(MODULES)  # rows is not for users
