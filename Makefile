# Two commands on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow fuzz lint docs clean

# Reinstalled whenever the requirements change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[plot,progress,test,lint]'
	touch $@

demo: $(STAMP)
	$(BIN)/python docs/examples/plot_grid_search.py

# One process with one thread for each core: threads gain nothing on problems of tens of rows.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --dist=worksteal $(TESTS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Ten minutes; FUZZ="--cases 500 --checks teacher" for another number of cases.
fuzz: $(STAMP)
	$(BIN)/python tests/run_fuzz.py $(FUZZ)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/gallery docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
