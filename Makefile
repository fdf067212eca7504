# Every target sets up what it needs by itself: `make demo` and `make test` work in a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SIZE ?= full
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help npm setup demo test test-devices test-milvus lint bench benchname clean

npm:
	@tools/require.sh npm

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.done  ## Create the virtual environment with everything in it

$(VENV)/.done: pyproject.toml constraints.txt tools/require.sh
	@tools/require.sh $(PYTHON)
	echo "[1/3] virtual environment in $(VENV)"
	$(PYTHON) -m venv --clear $(VENV)
	echo "[2/3] torch, CPU build (first and alone, so that nothing pulls a CUDA build)"
	$(PIP) install --quiet --progress-bar off -c constraints.txt torch
	echo "[3/3] samespace with all extras and the development tools (about 2.5 GB, a few minutes)"
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e '.[dev]' tflite-runtime
	touch $@

demo: npm setup  ## Train, export, check and search on real images; writes build/demo/index.html
	$(BIN)/python examples/ship_to_phone/demo.py --size $(SIZE) --output build/demo

lint: setup  ## Formatting, style, types and import layers
	@echo "ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	echo "import layers" && $(BIN)/lint-imports --no-cache
	echo "types" && $(BIN)/pyright --pythonpath $(BIN)/python

test: npm lint  ## All checks and tests, at CI size
	@echo "tests"
	$(BIN)/python -m pytest -n 2 -m "not devices and not milvus"

test-devices: npm setup  ## Tests on emulated devices: one ARM processor and the browser, at most 10 minutes
	@echo "tests on devices"
	$(BIN)/python -m pytest -n 2 -m devices

test-milvus: setup  ## Tests of the index in Milvus: milvus-lite and a server, which is installed first, at most 5 minutes
	@[ -x build/milvus/bin/python ] || { $(PYTHON) -m venv build/milvus && build/milvus/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  'milvus==2.3.5' 'setuptools<80' 'marshmallow<4' 'numpy<2' 'pandas<3' 'protobuf<5'; }
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e '.[milvus]'
	SAMESPACE_MILVUS_PYTHON=build/milvus/bin/python $(BIN)/python -m pytest -m milvus

bench: benchname setup  ## Run one benchmark: make bench NAME=embedder_overhead
	@if [ -d "benchmarks/$(NAME)" ]; then $(BIN)/python benchmarks/$(NAME)/run.py --size $(SIZE); else $(BIN)/python benchmarks/$(NAME).py; fi
	$(BIN)/python benchmarks/tables.py

# Before the setup, which takes minutes.
benchname:
	@known=$$(cd benchmarks && ls -d *.py */run.py | sed 's/\.py$$//; s/\/run$$//' | grep -vx tables | tr '\n' ' ')
	case " $$known" in *" $(NAME) "*) ;; *) echo "which one? make bench NAME=..., one of: $$known" >&2; exit 2;; esac

clean:  ## Remove what the targets made
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
