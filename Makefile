# make setup | demo | test | lint. Each target sets up its own environment (.venv) and needs nothing but Python 3.11+ and make.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.flowft-installed
EXTRAS := robosuite,ogbench,robotics,metaworld,panda,lerobot,zarr,filters,plot,video,hub,dev
CANDIDATES := $(PYTHON) python3.11 python3.12 python3 python
WORKERS ?= 2
# Several processes share the cores here: one thread each is faster than threads that fight.
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo test lint clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   install flowft and the simulators into $(VENV)/ (PYTHON=/path/to/python3.11 to choose the interpreter)"
	@echo "make demo    demonstrations -> cloned policy -> improved policy, on robosuite Lift; ends with a plot"
	@echo "make test    the whole test suite (WORKERS=$(WORKERS))"
	@echo "make lint    ruff, mypy --strict, import layers"

setup: $(STAMP)

# The constraints pin the set of versions that was tested together.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

$(BIN)/python:
	@for name in $(CANDIDATES); do \
	  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV)/ with $$name and installing flowft with its simulators (3.1 GB, some minutes)"; \
	    exec "$$name" -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer with venv and ensurepip among: $(CANDIDATES)" >&2; \
	echo "fix: install it (Debian, Ubuntu: apt-get install python3.11-venv), or make setup PYTHON=/path/to/python3.11" >&2; \
	exit 1

demo: setup
	@$(THREADS) PATH="$(abspath $(BIN)):$$PATH" bash -euo pipefail -c '\
	  flowft pretrain --recipe demo --dataset scripted/lift --name demo; \
	  flowft finetune --ckpt demo; \
	  flowft plot demo-finetuned --out demo/success.png'
	@echo
	@echo "The plot: $(CURDIR)/demo/success.png (the cloned policy is the dashed line, the improved one the curve)"
	@echo "Next:     source $(BIN)/activate"
	@echo "          flowft eval demo-finetuned --episodes 100             # the improved policy, with its interval"
	@echo "          flowft data info scripted/lift                        # what it was cloned from"
	@echo "          flowft data check my_demos.hdf5                       # then your own:"
	@echo "          flowft pretrain --dataset my_demos.hdf5 --recipe small --name mine && flowft finetune --ckpt mine"

test: setup
	@$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=10 $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
