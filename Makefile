# make demo   a small model trained, a knowledge base built, three questions asked
# make test   what continuous integration runs: lint, types, floors, tests
# make check  the same without the tests
#
# Each target first makes its own virtual environment in .venv; later runs reuse it and install nothing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Where it is set, each of the hundreds of processes of the tests compiles the same 3,000 modules again, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/demo.sh

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not ray'
	$(BIN)/python -m pytest -m ray

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamp is written last, so an interrupted installation is taken up again. Compiling to bytecode is left to the
# first import of each module: most of what is installed here is never imported.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("gritkit needs Python >= 3.10; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
