"""The import directions of the package, and what importing it must not pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_kd

PACKAGE = Path(sklearn_kd.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A -> what A may import of sklearn_kd, besides its own folder.
BASE = {"exceptions", "_array"}
NUMERIC = {"kernels", "distillation", "linalg", "metrics"}
ALLOWED = {
    "exceptions": set(),
    "_array": {"exceptions"},
    "_sklearn": set(),
    # The planner is the lowest layer of linalg: it imports nothing but exceptions.
    "kernels": BASE | {"linalg._memory"},
    "distillation": BASE,
    "linalg": BASE | {"kernels"},
    "metrics": BASE | {"_sklearn", "linalg", "distillation", "kernels"},
    "datasets": set(),
    "_progress": {"_sklearn"},
    "_stream_parts": set(),
    "_streams": {"_array", "_stream_parts"},
    "_logits": BASE | {"_sklearn", "_progress", "_streams"},
    "_base": BASE | NUMERIC | {"_sklearn", "_progress", "_logits", "_streams"},
    "_streamed_rows": BASE | {"_base", "_streams", "linalg"},
    "_initial_network": BASE | {"_logits", "_streams", "kernels"},
    "_teacher": BASE | NUMERIC | {"_sklearn", "_progress", "_logits", "_base"},
    "_torch_teacher": BASE | {"_sklearn", "_logits"},
    "_targets": {"_base", "distillation"},
    "_frame_cache": BASE | {"kernels", "linalg"},
    "_prefix_path": BASE | NUMERIC | {"_sklearn", "_targets"},
    "_taught": BASE
    | {"_sklearn", "_progress", "_logits", "_base", "_targets", "_teacher", "_torch_teacher"},
    "_student": BASE
    | NUMERIC
    | {"_sklearn", "_progress", "_logits", "_base", "_prefix_path", "_targets", "_taught"}
    | {"_frame_cache", "_initial_network", "_solvers"}
    | {"_streams", "_streamed_rows"},
    "_solvers": BASE
    | NUMERIC
    | {"_sklearn", "_progress", "_frame_cache", "_streams"}
    | {"_nystrom_student", "_nystrom_checkpoint", "_pcg_student"},
    "_held_out_student": BASE | {"_base", "_targets", "kernels", "linalg"},
    "_cv_results": {"_held_out_student", "_logits", "_student"},
    "_student_cv": BASE
    | NUMERIC
    | {"_sklearn", "_progress", "_base", "_student", "_held_out_student", "_cv_results"}
    | {"_exact_search", "_nystrom_search", "_pcg_search", "_solvers", "_streams"},
    "_exact_search": {"_base", "_cv_results", "_held_out_student", "_initial_network", "_progress"}
    | {"kernels", "linalg"},
    "_pcg_search": {"_base", "_cv_results", "_exact_search", "_held_out_student"}
    | {"_pcg_student", "_progress", "_solvers", "kernels", "linalg"},
    "_nystrom_search": {"_base", "_cv_results", "_held_out_student", "_initial_network", "_solvers"}
    | {"_nystrom_student", "_progress", "_streamed_rows", "_streams", "kernels", "linalg"},
    "_nystrom_checkpoint": BASE | {"kernels", "linalg"},
    "_pcg_student": BASE | {"kernels", "linalg"},
    "_nystrom_student": BASE | {"kernels", "linalg", "_streams", "_nystrom_checkpoint"},
    "inspection": BASE | NUMERIC | {"_logits", "_targets"},
    "__init__": {"_teacher", "_torch_teacher", "_student", "_student_cv"},
}

# The files of the numeric folders that know scikit-learn: its kernel class, its scorers.
SKLEARN_FACING = {
    "kernels/_empirical.py",
    "kernels/_ntk.py",
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
    assert own in ALLOWED, f"add {own} to the layers"
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "sklearn_kd" and len(parts) > 1 and parts[1] in ALLOWED:
            allowed = {parts[1], ".".join(parts[1:3])} & ALLOWED[own]
            assert parts[1] == own or allowed, f"{own} imports {module}"


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


def test_import_pulls_in_no_plotting_library():
    code = "import sys, sklearn_kd.inspection, sklearn_kd.metrics; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sklearn_kd._student" in loaded
    assert "matplotlib" not in loaded
