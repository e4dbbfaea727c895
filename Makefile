# make quickstart   create .venv, run the main job on embedded data, print the result
# make test         create .venv, run the tests
# make check        what to run before a commit: lint, format, types, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check lint types install clean

install: $(VENV)/.installed

# Installed once, and again when the dependencies change.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

quickstart: install
	$(BIN)/python tools/train.py --config configs/quickstart.yaml --overwrite

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) build *.egg-info
