"""The reference names all that is public, methods are documented, pages show before they tell."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "api.rst"
TEMPLATES = DOCS / "_templates" / "autosummary"
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
PAGES = [
    path for folder in ("", "guide", "start") for path in sorted((DOCS / folder).glob("*.rst"))
]
MOST_WORDS_BEFORE_A_PICTURE = 520  # two screens
PICTURE = re.compile(
    r"\s*\.\. (image|figure|list-table|table|grid|tab-set|glossary|autosummary)::|={3,} +={3,}"
)
# Their methods are called by students and searches, and take internal objects.
CALLED_BY_STUDENTS = {"solvers", "linalg"}


def documented_names():
    """Return the dotted names that have an entry: in an autosummary, or as data."""
    text = REFERENCE.read_text(encoding="utf-8")
    entries = re.findall(r"^   ([A-Za-z_][\w.]*)$", text, re.MULTILINE)
    return entries + re.findall(r"^\.\. py:data:: ([\w.]+)$", text, re.MULTILINE)


def imported(module):
    return importlib.import_module(f"sklearn_kd.{module}" if module else "sklearn_kd")


def exported_names(module):
    prefix = f"{module}." if module else ""
    return {prefix + name for name in imported(module).__all__}


def public_members():
    """Yield module, class, name and object of what public classes define and do not inherit."""
    for module in ["", *MODULES]:
        for class_name in imported(module).__all__:
            owner = getattr(imported(module), class_name)
            if not inspect.isclass(owner):
                continue
            for name, member in inspect.getmembers(owner):
                function = getattr(member, "fget", member)
                ours = str(getattr(function, "__module__", "")).startswith("sklearn_kd")
                if ours and not name.startswith("_"):
                    yield module, class_name, name, function


MEMBERS = list(public_members())
METHODS = [m for m in MEMBERS if m[0] not in CALLED_BY_STUDENTS and inspect.isroutine(m[3])]


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


def test_the_page_of_a_class_has_a_section_for_each_method():
    template = (TEMPLATES / "class.rst").read_text(encoding="utf-8")
    assert re.search(r"^   :members:$", template, re.MULTILINE)
    hidden = re.search(r"^   :inherited-members: (.*)$", template, re.MULTILINE)
    # Members of these classes have no section: of exceptions, torch modules and object.
    assert set(hidden[1].split(", ")) == {
        "BaseException",
        "Exception",
        "Module",
        "Warning",
        "object",
    }
    for name in ("class", "base"):
        assert "minigallery" in (TEMPLATES / f"{name}.rst").read_text(encoding="utf-8")


def test_there_are_methods_to_look_at():
    found = {f"{owner}.{name}" for _, owner, name, _ in MEMBERS}
    assert {
        "LinearizedKDStudent.prefix_path",
        "LinearizedKDStudentCV.for_network",
        "DistillationPlan.to_html",
        "TangentFrame.loo",
        "Recipe.as_code",
    } <= found


def id_of(value):
    """Return the text of names; objects are numbered, as their text has an address."""
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("module", "owner", "name", "member"), MEMBERS, ids=id_of)
def test_every_public_method_has_a_docstring(module, owner, name, member):
    assert inspect.getdoc(member)


@pytest.mark.parametrize(("module", "owner", "name", "method"), METHODS, ids=id_of)
def test_every_parameter_of_a_method_is_documented(module, owner, name, method):
    documented = inspect.getdoc(method)
    parameters = list(inspect.signature(method).parameters)
    if not inspect.ismethod(method):
        parameters = parameters[1:]  # self, by whatever name
    for parameter in parameters:
        entry = rf"^\s*([\w*]+, )*\*{{0,2}}{parameter}(, [\w*]+)* :"
        assert re.search(entry, documented, re.MULTILINE), parameter


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_picture_or_a_table_comes_within_two_screens(page):
    words, in_example = 0, False
    for line in page.read_text(encoding="utf-8").splitlines():
        if PICTURE.match(line):
            break
        in_example = bool(line.strip()) and (in_example or line.startswith(">>>"))
        words += 0 if in_example else len(line.split())
    assert words <= MOST_WORDS_BEFORE_A_PICTURE


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_pages_do_not_talk_of_internal_aims(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b[Tt]he (goals?|targets?) (was|were|is|of a|of \d)", text)


def test_the_gallery_orders_every_example():
    order = (DOCS / "gallery_order.py").read_text(encoding="utf-8")
    examples = {path.name for path in (DOCS / "examples").glob("plot_*.py")}
    assert set(re.findall(r'"(plot_\w+\.py)"', order)) == examples


def test_the_version_switcher_knows_this_version():
    versions = json.loads((DOCS / "_static" / "switcher.json").read_text(encoding="utf-8"))
    assert imported("").__version__ in {entry["version"] for entry in versions}


def test_the_readme_is_short_and_its_links_work_on_any_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1000
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
