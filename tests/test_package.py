"""What is declared agrees: versions, oldest requirements, files of the source archive."""

import re
import tomllib
from pathlib import Path

import pytest

import sklearn_kd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TESTED = ("plot", "progress", "test")  # the extras that .ci/oldest installs


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line.partition("#")[0].strip() for line in lines]
    found = [line.split("==") for line in lines if "==" in line]
    return {package.replace("_", "-"): version for package, version in found}


def declared(*extras):
    """Return the oldest version of each package that the project or an extra asks for."""
    optional = PROJECT["optional-dependencies"]
    asked = PROJECT["dependencies"] + [one for extra in extras for one in optional[extra]]
    found = (re.match(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)$", one) for one in asked)
    return {match[1]: match[2] for match in found}


def numbers(version):
    parts = [int(part) for part in version.split(".")]
    return parts + [0] * (3 - len(parts))


@pytest.mark.parametrize("package", sorted(declared(*TESTED)))
def test_the_oldest_pins_are_the_declared_minimum(package):
    assert numbers(pins("tests/oldest.txt")[package]) == numbers(declared(*TESTED)[package])


@pytest.mark.parametrize("package", sorted(declared(*PROJECT["optional-dependencies"])))
def test_the_tested_versions_are_pinned_and_not_older(package):
    assert numbers(pins("constraints.txt")[package]) >= numbers(
        declared(*PROJECT["optional-dependencies"])[package]
    )


def test_one_version():
    assert PROJECT["version"] == sklearn_kd.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {sklearn_kd.__version__}\n" in citation


def test_workflows_run_what_is_declared():
    matrix = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert '["3.11", "3.12", "3.13", "3.14"]' in matrix
    assert PROJECT["requires-python"] == ">=3.11"
