# Every target does its own set-up: it needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEV := .venv/.ready-dev
DOCS := .venv/.ready-docs
WORKERS ?= 2
# a file's tests stay together: they share what they compile
SPREAD = -n $(WORKERS) --dist loadfile

.PHONY: demo test test-masked lint bench clean coverage sanitize docs lowest

demo: $(READY)  ## train on the bundled text for a minute, sample, score, draw
	@$(BIN)/everstep demo

test: $(DEV)  ## the whole suite, by two processes; WORKERS=1 for one, WORKERS=auto for as many as there are cores
	$(BIN)/python -m pytest $(SPREAD)

# PyTorch, oneDNN and, by the first, the compiled engine do without AVX-512; processors of another family ignore both
test-masked: export ATEN_CPU_CAPABILITY = avx2
test-masked: export ONEDNN_MAX_CPU_ISA = AVX2
test-masked: export EVERSTEP_CXXFLAGS =
test-masked: $(DEV)  ## what depends on the processor's instructions, with most of them held back
	$(BIN)/python -m pytest -m instructions

coverage: $(DEV)  ## branch coverage of the package
	$(BIN)/python -m pytest $(SPREAD) --cov --cov-report=term

lint: $(DEV)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)  ## the documentation site, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs

bench: $(DEV)  ## speed beside rivals; minutes, on an otherwise idle machine
	$(BIN)/python benchmarks/lm.py
	$(BIN)/python benchmarks/engine.py --only grid,cells,ragged,stream
	$(BIN)/python benchmarks/rivals.py

# shifts of negative numbers are defined since C++20 and by all compilers before; -s, since a report ends the process
sanitize: export EVERSTEP_CXXFLAGS = -O1 -g -fsanitize=address,undefined -fno-sanitize=shift -fno-sanitize-recover=undefined
sanitize: export EVERSTEP_CACHE = $(CURDIR)/build/sanitized
sanitize: export CXX := $(CXX)
sanitize: export ASAN_OPTIONS = detect_leaks=0
sanitize: $(DEV)  ## the compiled engine under the address and undefined-behaviour sanitizers; minutes
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" $(BIN)/python -m pytest -s -m sanitize

lowest: export VIRTUAL_ENV = $(CURDIR)/build/lowest
lowest:  ## the tests but the slow ones, with the oldest version of each direct dependency; PYTHON=python3.12 for another
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	build/lowest/bin/uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
	build/lowest/bin/python -m pytest $(SPREAD) -o filterwarnings= -m 'not slow'

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

$(DOCS): .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@ $(READY)
