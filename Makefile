# Everything runs in .venv/ inside the checkout; no root is needed. PYTHON is a Python from 3.11.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each: most tests hardly use a second core.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=15 -n 2 --dist loadfile

bench: setup
	$(BIN)/python -m benchmarks.end_to_end.compare

clean:
	rm -rf $(VENV) demo-out demo-data build dist
