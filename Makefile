# make quickstart   create .venv, run the main job on embedded data, print the result
# make test         create .venv, run the tests but the slow ones
# make test-all     run all tests
# make check        what to run before a commit: lint, format, types, all tests
# make test-plain   promises about bits, as an old processor computes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all test-plain check lint types install clean

install: $(VENV)/.installed

# Installed once, and again when the dependencies change.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

quickstart: install
	$(BIN)/python tools/train.py --config configs/quickstart.yaml --overwrite

test: install
	$(BIN)/python -m pytest -m "not slow"

test-all: install
	$(BIN)/python -m pytest

# Without the vector instructions of today's processors sums are added up in another order.
BITS := few_shot calibration prototypes resume pretrained cache store folding trainer analytic ridge exemplars nets
test-plain: install
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		$(BIN)/python -m pytest -m "not slow" $(BITS:%=tests/test_%.py)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test-all

clean:
	rm -rf $(VENV) build *.egg-info
