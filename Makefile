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
PYTEST_ARGS ?=

.PHONY: help install demo test lint format train-demo clean

help:
	@echo "make demo        run the demo study: every method on the embedded model, table and report in demo-runs/"
	@echo "make test        run the test suite"
	@echo "make lint        ruff and mypy"
	@echo "make train-demo  train the embedded model again (hours on two cores)"
	@echo "make clean       remove .venv, demo-runs and caches"

$(STAMP): pyproject.toml constraints.txt scripts/repair_torchvision.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	# The photographs of frost, for the vectors of the official code; without dependencies, which would bring a second OpenCV.
	$(BIN)/python -m pip install --quiet --no-deps imagecorruptions-imaug==1.1.5
	$(BIN)/python scripts/repair_torchvision.py
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/lmms-eval-stability demo -o demo-runs

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-demo: $(STAMP)
	$(BIN)/python -m lmms_eval_stability.demo.training

clean:
	rm -rf $(VENV) demo-runs build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
