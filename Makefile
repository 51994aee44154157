# make demo: install into .venv and run the demo study.   make test: install into .venv and run the test suite.
# Both start from a bare checkout and may be repeated.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The first interpreter that the package supports; override with `make PYTHON=... test`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANTIZATION_STAMP := $(VENV)/.quantization-installed
PYTEST_ARGS ?=
# Processes that run tests, each file in one of them: 0 runs all in one, which a debugger needs.
TEST_WORKERS ?= 2
PYTEST := -m pytest -n $(TEST_WORKERS) --dist loadfile
# A second environment with the oldest transformers that pyproject.toml allows, which is also the one for llm-compressor.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
RIVAL := .venv-rival
RIVAL_STAMP := $(RIVAL)/.installed
BENCH_ARGS ?=
OLDEST_TESTS := tests/model_wrappers tests/end_to_end

.PHONY: help install demo test test-oldest test-browser test-all lint format bench train-demo clean

help:
	@echo "make demo        run the demo study: every method on the embedded model, table and report in demo-runs/"
	@echo "make test        run the test suite"
	@echo "make test-all    the same, then the models' tests with the oldest transformers and those of quantize"
	@echo "make test-browser  the report's page in headless Chromium, which has to be installed"
	@echo "make lint        ruff and mypy"
	@echo "make bench       every benchmark beside its rival, into benchmarks/results (an hour on two quiet cores)"
	@echo "make train-demo  train the embedded model again (hours on two cores)"
	@echo "make clean       remove .venv, .venv-oldest, .venv-rival, demo-runs and caches"

$(STAMP): pyproject.toml constraints.txt scripts/repair_torchvision.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@# The photographs of frost, for the vectors of the official code; without dependencies, which would bring a second OpenCV.
	$(BIN)/python -m pip install --quiet --no-deps imagecorruptions-imaug==1.1.5
	$(BIN)/python scripts/repair_torchvision.py
	touch $@

# What quantised models need, in an environment where it may be built: the tests need it, the demo does not.
$(QUANTIZATION_STAMP): $(STAMP) scripts/install_quantization.sh
	bash scripts/install_quantization.sh $(BIN)/python
	touch $@

# The pins of constraints-oldest.txt, and those of constraints.txt for everything else.
$(OLDEST_STAMP): pyproject.toml constraints.txt constraints-oldest.txt scripts/repair_torchvision.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(OLDEST)
	awk -F '[=<>!~; ]' '/^#/ { next } NR == FNR { old[tolower($$1)]; print; next } !(tolower($$1) in old)' \
		constraints-oldest.txt constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip -c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e ".[test,quantize]"
	$(OLDEST)/bin/python scripts/repair_torchvision.py
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/lmms-eval-stability demo -o demo-runs

# tests/quantize needs llm-compressor, which needs the other environment: test-oldest runs it. tests/browser needs Chromium.
test: $(STAMP) $(QUANTIZATION_STAMP)
	$(BIN)/python $(PYTEST) --ignore=tests/quantize --ignore=tests/browser $(PYTEST_ARGS)

# The report's page in headless Chromium (Debian: apt-get install chromium chromium-driver).
test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[browser]"
	$(BIN)/python $(PYTEST) tests/browser

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python $(PYTEST) -m "not any_transformers" $(OLDEST_TESTS)
	@if $(OLDEST)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	then $(OLDEST)/bin/python $(PYTEST) tests/quantize; \
	else echo "tests/quantize was not run: llm-compressor needs Python 3.11 or later" >&2; fi

test-all: test test-oldest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The rival of the perturbations needs a numpy of its own. One benchmark: make bench BENCH_ARGS="--only throughput"
$(RIVAL_STAMP): $(STAMP)
	$(PYTHON) -m venv $(RIVAL)
	$(RIVAL)/bin/python -m pip install --quiet imagecorruptions-imaug==1.1.5
	touch $@

bench: $(STAMP) $(RIVAL_STAMP)
	$(BIN)/python benchmarks/run_all.py --rival-python $(RIVAL)/bin/python $(BENCH_ARGS)

train-demo: $(STAMP)
	$(BIN)/python -m lmms_eval_stability.demo.training

clean:
	rm -rf $(VENV) $(OLDEST) $(RIVAL) demo-runs build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
