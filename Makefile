# prunefront: `make` alone lists what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test quick long torch-next fuzz lint audit bench zoo docs clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make setup` last installed for; pyproject.toml newer than this means: install again.
INSTALLED := $(VENV)/installed
N ?= 500
ROWS ?= zoo.jsonl
STUDY ?= examples/digits.toml
# Extras of pyproject.toml to install; machines of a cluster need none (scripts/setup-host.sh).
EXTRAS ?= dev
# CI tests everything with this one, `make torch-next` what knows torch with the next, before pyproject.toml lets it in.
TORCH ?= torch==2.13.*
NEXT_TORCH ?= torch==2.14.*
NEXT ?= .venv-next
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## make .venv and install everything into it; does nothing the second time

$(INSTALLED): pyproject.toml scripts/install.sh
	@scripts/install.sh "$(PYTHON)" "$(VENV)" "$(EXTRAS)" "$(TORCH)"
	@touch $@

demo: setup  ## search real images for small, fast networks (a few minutes) and print the front
	@$(BIN)/prunefront search $(STUDY) --fresh

test: services  ## everything that CI runs: lint, types, and all tests but those of `make long`
	@$(MAKE) --no-print-directory lint
	@PRUNEFRONT_REQUIRE_SERVICES=$${PRUNEFRONT_REQUIRE_SERVICES:-$${CI:+1}} OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15  # half of the time is waiting for processes

quick: setup  ## the fast tests only
	@$(BIN)/python -m pytest -q -m "not slow and not services and not faults and not long"

fuzz: setup  ## 500 hostile inputs for each reader of a file (minutes); N=… for another number
	@PRUNEFRONT_FUZZ=$(N) $(BIN)/python -m pytest -q tests/hostile

long: services  ## what is too long for CI: whole studies, and every fault once (an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "long or faults"

torch-next:  ## the tests of pruners and search with the next torch, in .venv-next (6 GB, with CUDA where pip brings it)
	@scripts/install.sh "$(PYTHON)" "$(NEXT)" "$(EXTRAS)" "$(TORCH)"
	@$(NEXT)/bin/python -m pip install --quiet "$(NEXT_TORCH)"  # pip says that prunefront asks for less, and goes on
	@OMP_NUM_THREADS=1 $(NEXT)/bin/python -m pytest -q tests/pruners tests/search tests/corpus

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

audit: setup  ## known holes in what is installed; says NOT CHECKED where the advisories are out of reach
	@$(BIN)/python scripts/audit.py

bench: setup  ## what a search costs beside the work itself
	@$(BIN)/python -m benchmarks.search_overhead

zoo: setup  ## the corpus' chain over the networks of installed timm and torchvision (hours); ROWS=… keeps the rows
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.corpus.zoo --rows $(ROWS)

docs: setup  ## the tables of docs/methods.md and docs/networks.md, written anew
	@$(BIN)/python -m prunefront.pipelines.cli.catalogue docs/methods.md
	@$(BIN)/python -m tests.corpus.table docs/networks.md

clean:  ## remove the environment and every cache; studies stay
	@rm -rf $(VENV) .venv-next .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# In CI a service that is missing is installed first, and a test that cannot find it fails instead of being skipped.
.PHONY: services
services: setup
	@if [ -n "$${CI:-}" ]; then scripts/install-test-services.sh; fi
