# Two commands for users: `make demo` and `make test`. Each sets everything up first.
# Overrides: PYTHON=python3.12 (what builds the environment), VENV=folder, TORCH=requirement, ARGS='key=value …'.
VENV ?= .venv
PYTHON ?=
TORCH ?=
ARGS ?=
export PYTHON TORCH

RUN := $(VENV)/bin/python
# torch uses one thread in tests, so processes are the parallelism; a file stays on one, for its fixtures.
PYTEST := $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile
INPUTS := pyproject.toml constraints.txt tools/install.sh

.PHONY: help demo test check lint fast slow docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

demo: $(VENV)/.runtime  ## set up, then the whole chain on the embedded planet: python train_da.py
	$(RUN) train_da.py $(ARGS)

test: $(VENV)/.dev  ## set up, then all tests and docstring examples but the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

check: lint test  ## everything a change must pass: ruff, mypy, interrogate, doctests, tests

lint: $(VENV)/.dev  ## ruff, mypy, docstring coverage
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m interrogate --quiet slams

fast: $(VENV)/.dev  ## while you work: ruff, then the tests that failed last (all, if none did), up to one failure
	$(RUN) -m ruff check .
	$(RUN) -m pytest -m "not slow" -x --last-failed $(ARGS)

slow: $(VENV)/.dev  ## the slow tests: paper numbers, full runs
	$(RUN) -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: no test is marked slow

docs: $(VENV)/.docs  ## the documentation in docs/_build/html, its examples executed; a warning is an error
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:  ## remove .venv and caches; data/ and logs/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build docs/_build *.egg-info
	find slams tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runtime: $(INPUTS)
	sh tools/install.sh $(VENV) data,maps
	@touch $@

$(VENV)/.dev: $(INPUTS)
	sh tools/install.sh $(VENV) data,maps,dev
	@touch $@ $(VENV)/.runtime

$(VENV)/.docs: $(INPUTS)
	sh tools/install.sh $(VENV) data,maps,docs
	@touch $@ $(VENV)/.runtime
