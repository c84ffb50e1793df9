"""The import directions of the package, and what importing it must not pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_kd

PACKAGE = Path(sklearn_kd.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Folder or file -> what it may import of sklearn_kd, besides itself; in the order of the house.
BASE = {"exceptions", "_array", "_logits", "_memory", "_modules", "_warnings"}
LINALG = BASE | {"rows", "kernels", "linalg"}
MACHINE = LINALG | {"_sklearn", "_progress", "_classifier", "_kernel_machine"}
ALLOWED = {
    "exceptions": set(),
    "_sklearn": set(),
    "datasets": set(),
    "_array": {"exceptions"},
    "_memory": {"exceptions"},
    "_modules": set(),
    "_progress": {"_sklearn"},
    "_show_versions": set(),
    "_warnings": set(),
    "_logits": {"_array"},
    "_classifier": {"_array", "_logits"},
    "rows": {"_array", "_sklearn", "_logits"},
    "kernels": BASE,
    "linalg": BASE | {"rows", "kernels"},
    "training": {"exceptions", "_logits", "_warnings"},
    "distillation": LINALG,
    "metrics": LINALG | {"_sklearn", "distillation"},
    "_kernel_machine": LINALG | {"_sklearn", "_classifier"},
    "teachers": MACHINE | {"distillation", "training"},
    "solvers": LINALG | {"_sklearn", "_progress"},
    "students": MACHINE | {"distillation", "metrics", "solvers", "teachers", "training"},
    "search": MACHINE | {"distillation", "metrics", "solvers", "teachers", "students", "training"},
    "inspection": LINALG | {"distillation", "metrics", "search"},
    "plan": MACHINE | {"distillation", "metrics", "teachers", "students", "search", "inspection"},
    "__main__": {"plan"},
    "paper": MACHINE | {"datasets", "distillation", "metrics", "teachers", "students"},
    "__init__": {"_show_versions", "teachers", "students", "search", "plan"},
}
NUMERIC = {"kernels", "linalg", "training", "distillation", "metrics"}

# The files of the numeric folders that know scikit-learn: its kernel classes, its scorers.
SKLEARN_FACING = {
    "kernels/_empirical_ntk.py",
    "kernels/_noise.py",
    "kernels/_ntk.py",
    "kernels/_scale.py",
    "kernels/__init__.py",
    "metrics/_scorers.py",
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = layer(path)
    assert own in ALLOWED, f"add {own} to the table"
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "sklearn_kd" and len(parts) > 1 and parts[1] in ALLOWED:
            assert parts[1] in {own} | ALLOWED[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_numeric_files_do_not_import_sklearn(path):
    relative = path.relative_to(PACKAGE).as_posix()
    if layer(path) in NUMERIC and relative not in SKLEARN_FACING:
        assert not any(module.split(".")[0] == "sklearn" for module in imported_modules(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_sklearn_names_only_in_one_file(path):
    if path.name == "_sklearn.py":
        return
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "sklearn":
            assert not any(part.startswith("_") for part in parts), f"{path.name}: {module}"


def test_import_pulls_in_nothing_optional():
    code = "import sys, sklearn_kd.inspection, sklearn_kd.metrics; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sklearn_kd.students._student" in loaded
    assert not {"matplotlib", "skorch"} & set(loaded)
