# `make demo` and `make test` set everything up by themselves: Python >= 3.11, make and a package index are enough.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

UV_VERSION := 0.13.9
# A tested Python, 3.11 to 3.13, where there is one, else a newer one.
PYTHON ?= $(shell for newest in 13 99; do for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$newest))" 2>/dev/null \
	&& { command -v "$$p"; exit; }; done; done)
VENV := .venv
RUN := $(VENV)/bin/python
BENCH_OUT ?= out/benchmarks
# Where `uv` comes from when the machine has none: a small environment of its own.
UV := $(shell command -v uv || echo .uv/bin/uv)
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n > 4 ? 4 : n )))
# Tests that share compiled programs share a worker: tests/conftest.py says which.
PARALLEL = -n $(WORKERS) --dist loadgroup

# Compiled programs are kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3
# XLA remarks, as errors, on every program that it loads from there.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help env demo test test-long lint types unit oldest bench notebooks pair docs lock clean

help:
	@echo "make demo   task-driven dictionary learning on handwritten digits, into out/demo/"
	@echo "make test   lint, types, architecture and unit tests"
	@echo "make test-long  the same, with the tests that take minutes: processes, kills, data larger than memory"
	@echo "make env    the environment alone, in $(VENV)"
	@echo "make oldest the unit tests on the oldest supported dependencies"
	@echo "make bench  the benchmarks in their quick sizes, against SPAMS, scikit-learn and JAXopt, into $(BENCH_OUT)/"
	@echo "make notebooks  the notebooks in full, into out/notebooks/, and docs/notebooks/found.md; some of them: make notebooks NOTEBOOKS=notebooks/00_start.py"
	@echo "make pair   the notebooks' .ipynb files anew from their texts"
	@echo "make docs   the documentation, into out/site/, with notebooks as they ran last"
	@echo "make lock   resolve the dependencies anew into requirements.lock"
	@echo "make clean  remove environments, caches and results"

env: $(VENV)/.installed

.uv/bin/uv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found. Install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	"$(PYTHON)" -m venv .uv
	.uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

$(VENV)/.installed: requirements.lock pyproject.toml | $(UV)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found. Install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(RUN) || "$(UV)" venv --quiet --python "$(PYTHON)" $(VENV)
	"$(UV)" pip sync --quiet --python $(RUN) --require-hashes requirements.lock
	"$(UV)" pip install --quiet --python $(RUN) --no-deps --no-build-isolation --editable .
	touch $@

demo: env
	$(RUN) -m bilevel

test: lint types unit

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: env
	$(RUN) -m basedpyright

unit: env
	$(RUN) -m pytest $(PARALLEL)

test-long: lint types
	$(RUN) -m pytest $(PARALLEL) -m "" --durations 20

# The oldest versions that pyproject.toml admits, resolved anew. SciPy stays new: scikit-learn bounds it.
.venv-oldest/.installed: pyproject.toml | $(UV)
	"$(UV)" venv --quiet --clear --python "$(PYTHON)" .venv-oldest
	"$(UV)" pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable ".[plots]"
	"$(UV)" pip freeze --python .venv-oldest/bin/python --exclude-editable > .venv-oldest/oldest.txt
	"$(UV)" pip install --quiet --python .venv-oldest/bin/python --constraint .venv-oldest/oldest.txt \
		pytest pytest-xdist hypothesis beartype pandas hatchling editables uv
	touch $@

oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest $(PARALLEL) -W ignore::DeprecationWarning \
		--ignore=tests/test_packaging.py --ignore=tests/notebooks

# The rivals, some of them under other licences, in an environment of their own.
.venv-bench/.installed: requirements.lock pyproject.toml | $(UV)
	"$(UV)" venv --quiet --clear --python "$(PYTHON)" .venv-bench
	"$(UV)" pip sync --quiet --python .venv-bench/bin/python --require-hashes requirements.lock
	"$(UV)" pip install --quiet --python .venv-bench/bin/python --group bench
	"$(UV)" pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .
	touch $@

# The quick set; one in full: .venv-bench/bin/python -m benchmarks NAME. Figures with compilation are those of a first run.
BENCHMARKS ?= sparse_coding hypergradient autoencoder archetypes hyperparameter_selection unrolled_vs_implicit \
	dictionary_training certificates hypergradient_errors weak_scaling
bench: .venv-bench/.installed
	for name in $(BENCHMARKS); do .venv-bench/bin/python -m benchmarks $$name --quick --out $(BENCH_OUT); done
	.venv-bench/bin/python -m benchmarks report --out $(BENCH_OUT)

# Each is a text, NAME.py, and NAME.ipynb made from it, without output. Those of all make a page, docs/notebooks/found.md.
NOTEBOOKS ?= $(wildcard notebooks/*.py)
notebooks: env
	"$(UV)" pip install --quiet --python $(RUN) --group notebooks
	"$(UV)" pip install --quiet --python $(RUN) --no-deps --group genes
	$(RUN) docs/site/executed.py $(NOTEBOOKS)
	$(RUN) docs/site/found.py

pair: env
	$(RUN) -m jupytext --quiet --update --to ipynb $(NOTEBOOKS)

# Notebooks that were not run since their text changed are run in quick sizes. To read: python -m http.server -d out/site
docs: env
	$(RUN) docs/site/executed.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict -f docs/site/mkdocs.yml

# SPORCO, which is there for a photograph and never imported, asks for pyFFTW, which has no wheel for some platforms.
lock: | $(UV)
	"$(UV)" pip compile pyproject.toml --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
		--extra plots --extra data --extra scale --extra tensorboard --group dev --group docs --no-emit-package pyfftw \
		--custom-compile-command "make lock" --output-file requirements.lock

clean:
	rm -rf $(VENV) .venv-oldest .venv-bench .uv .cache out dist .pytest_cache .ruff_cache .hypothesis
