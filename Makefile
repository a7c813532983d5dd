# Everything a fresh machine with Python 3.11, make, bash and git needs is done by `make setup`, which the others run first.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
SPREAD := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-fast test-long check lint format types bench docs site clean help

help:            ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP)  ## an environment in .venv with exact versions, and .venv/bin/silotune

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "silotune needs Python 3.11 or newer; say which with make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 2 GB; a minute or two)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]' \
		| sed -u -nE 's/^(Collecting|Downloading|Processing|Installing|Successfully)/\1/p' | cut -c1-100
	@$(BIN)/silotune --version && touch $(STAMP)

demo: setup      ## three invented organisations tune one model together, in a few minutes
	@$(BIN)/silotune demo

test: setup      ## all tests, on a random small model and on the real one
	@$(SPREAD)

test-long: setup ## the faults that take minutes: parts killed, stopped and cut off in each phase
	@$(BIN)/python -m pytest -m long tests/real

test-fast: setup ## the tests that need no real processes and no real model
	@$(SPREAD) -m "not real"

lint: setup
	@$(BIN)/ruff check --no-cache .  # its cache does not see that a module has appeared or moved
	@$(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

check: lint types test  ## lint, format, types and tests

format: setup    ## put the code in order
	@$(BIN)/ruff check --fix -q . || true
	@$(BIN)/ruff format .

bench: setup     ## speed of the local loop and of the federation against plain loops; about a quarter of an hour
	@$(BIN)/python -m benchmarks.speed.run

site: setup      ## the documentation as a site in site/, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs: setup      ## the references in docs/, from the settings
	@$(BIN)/python -m silotune.reference > docs/recipe.md
	@$(BIN)/python -m silotune.reference silo > docs/silo.md

clean:           ## remove the environment and what tools left behind
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
