# `make` alone lists the targets. All set-up happens in .venv, on first use; a machine needs Python and make, nothing else.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
TESTS  ?= tests
ARGS   ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := $(shell find d1ray actors -not -name '*.pyc' -not -name __pycache__)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-unit soak bench lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: .venv/.runtime ## train a tiny diffusion LLM on Sudoku, on this machine (ARGS="key=value ...")
	$(BIN)/d1ray train sudoku-tiny $(ARGS)

# The virtual environment. d1ray is installed editable, so an edit counts at once. torch is named in the same command as
# the rest, so that no dependency can pull in another build of it; another one: make demo TORCH='torch>=2.6'.
# Byte-compiling all of torch, Ray and transformers is a third of an install, so only what is imported gets compiled; the
# import here does it once, before Ray's workers would all do it at the same time.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "d1ray needs Python 3.11 or newer: '$(PYTHON)' is missing or older. Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml | $(BIN)/python
	@echo "Installing d1ray and $(TORCH) into .venv (once; a minute or a few)"
	@$(PIP) install --no-compile '$(TORCH)' --editable .
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import ray.train.torch, torch, transformers, peft, matplotlib.pyplot'
	@touch $@

.venv/.dev: .venv/.runtime
	@echo "Installing the development tools into .venv (once)"
	@$(PIP) install '$(TORCH)' --editable '.[dev]'
	@touch $@

# `make test` tests what users get. The wheel is built and installed under build/installed, which PYTHONPATH puts before the
# editable install, for the driver and for every Ray worker. pytest runs in an empty folder, because Ray puts the driver's
# working directory first on its workers' path: from here they would import the checkout instead.
# While developing, `.venv/bin/pytest tests/rl/test_x.py` tests the checkout itself.
build/installed/.stamp: pyproject.toml $(SOURCES) | .venv/.dev
	@rm -rf build/installed
	@$(PIP) install --no-deps --target build/installed .
	@touch $@

PYTEST = mkdir -p build/empty && cd build/empty && PYTHONPATH='$(CURDIR)/build/installed' \
  '$(CURDIR)/$(BIN)/pytest' -c '$(CURDIR)/pyproject.toml' --durations=10

# Tests without Ray run on every core, and in one process more: some wait, for a download or a browser. Those with Ray run in two,
# each with a cluster of its own: what starts imports on one core, and what has died is waited for. pytest's 5: it was given none of
# a kind.
BESIDE_EACH_OTHER = --numprocesses $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)') --dist loadfile
TWO_AT_A_TIME = --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: build/installed/.stamp ## all tests but soaks, against the installed wheel (TESTS=tests/rl, ARGS="-k name")
	$(PYTEST) $(addprefix '$(CURDIR)'/,$(TESTS)) -m 'not ray and not soak' $(BESIDE_EACH_OTHER) $(ARGS) || [ $$? = 5 ]
	$(PYTEST) $(addprefix '$(CURDIR)'/,$(TESTS)) -m 'ray and not soak' $(TWO_AT_A_TIME) $(ARGS) || [ $$? = 5 ]

test-unit: build/installed/.stamp ## the fast tests: no Ray, nothing slow
	$(PYTEST) '$(CURDIR)/tests' -m 'not ray and not slow and not soak' $(BESIDE_EACH_OTHER) $(ARGS)

soak: build/installed/.stamp ## what `make test` does in short, for minutes: random kills in a long run
	$(PYTEST) '$(CURDIR)/tests' -m soak -s $(ARGS)

bench: build/installed/.stamp ## benchmarks: ratios, printed and held to their targets; some minutes
	$(PYTEST) -s '$(CURDIR)/tests/benchmarks' $(ARGS)

lint: .venv/.dev ## ruff, mypy and the layer contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: .venv/.runtime ## renew docker/requirements.lock, the image's dependencies
	@$(PIP) install uv
	UV='$(BIN)/uv' TORCH='$(TORCH)' docker/lock.sh

clean: ## delete what was built or cached; .venv and runs stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find d1ray actors tests -name __pycache__ -prune -exec rm -rf {} +
