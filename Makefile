# Every target does its own set-up: it needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEV := .venv/.ready-dev

.PHONY: demo test lint bench clean coverage

demo: $(READY)  ## train on the bundled text for a minute, sample, score, draw
	@$(BIN)/everstep demo

test: $(DEV)  ## the whole suite
	$(BIN)/python -m pytest

coverage: $(DEV)  ## branch coverage of the package
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(DEV)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV)  ## speed beside rivals; minutes, on an otherwise idle machine
	$(BIN)/python benchmarks/lm.py
	$(BIN)/python benchmarks/scans.py

clean:  ## remove what the other targets made, except runs
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "everstep needs Python 3.11 or newer; make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv .venv

$(READY): .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(DEV): .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(READY)
