"""Files, functions and constructors stay small enough to read; imports stand at the top."""

import ast
import inspect
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator

import sklearn_kd
import sklearn_kd.solvers

PACKAGE = Path(sklearn_kd.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

MOST_LINES_OF_A_FILE = 450
MOST_LINES_OF_A_FUNCTION = 60  # of code: docstrings, comments and blank lines do not count
MOST_PARAMETERS = 16
MOST_PARAMETERS_OF_A_SEARCH = 21  # those of its students, and its own

# Optional or heavy: imported where they are used, and nowhere else.
IMPORTED_INSIDE = {"matplotlib", "dask", "rich", "skorch"}


def name_of(path):
    return str(path.relative_to(PACKAGE))


def functions_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def lines_of_code(function, source):
    """Count the lines of a function without its signature, docstring, comments and blanks."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    lines = source.splitlines()[body[0].lineno - 1 : function.end_lineno]
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_A_FILE


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_fit_on_a_screen(path):
    source = path.read_text(encoding="utf-8")
    long = {f.name: lines_of_code(f, source) for f in functions_of(path)}
    assert {k: v for k, v in long.items() if v > MOST_LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_stand_at_the_top(path):
    for function in functions_of(path):
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            assert {module.split(".")[0] for module in modules} <= IMPORTED_INSIDE


def estimators():
    for module in (sklearn_kd, sklearn_kd.solvers):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, BaseEstimator):
                yield value


@pytest.mark.parametrize("estimator", list(estimators()), ids=lambda cls: cls.__name__)
def test_constructors_can_be_remembered(estimator):
    parameters = inspect.signature(estimator.__init__).parameters
    is_search = estimator.__name__.endswith("CV")
    assert len(parameters) - 1 <= (MOST_PARAMETERS_OF_A_SEARCH if is_search else MOST_PARAMETERS)
