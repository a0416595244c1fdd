PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# one more than there are cores: half of the time of a test in the browser is waiting
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help run test check format bench space oracle clean

help:
	@echo "make run     install into $(VENV) and start the app with the demo family"
	@echo "make test    install what the tests need and run all of them"
	@echo "make check   formatting, lint, types, import arrows, generated docs"
	@echo "make format  rewrite the code in the project's format"
	@echo "make bench   speed and memory, as ratios in one run"
	@echo "make space   upload this to a Space of Hugging Face: make space SPACE=org/name"
	@echo "make oracle  install mergekit beside it, so that make test compares with it"

$(VENV)/.ready: requirements.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.txt
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(PIP) --requirement requirements-dev.txt
	@touch $@

run: $(VENV)/.ready
	$(BIN)/python app.py

# these compile every loop once, before workers, apps and commands would compile them side by side
COMPILING := tests/test_kernels.py tests/test_fate.py

# a file at a time, those in the browser first: they are long, and their tests share a page
test: $(VENV)/.ready-dev
	@scripts/install-browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(COMPILING)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(COMPILING:%=--ignore=%)

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py
	$(BIN)/python scripts/readme.py --check

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python scripts/readme.py

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks.run

space: $(VENV)/.ready
	SPACE="$(SPACE)" PUBLIC="$(PUBLIC)" $(BIN)/python scripts/space.py

ORACLE := .venv-mergekit
ORACLE_PIP := $(ORACLE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# torch first: left to mergekit's requirements, pip fetches gigabytes of CUDA libraries
$(ORACLE)/.ready: tests/oracle/requirements.txt constraints.txt
	test -x $(ORACLE)/bin/python || $(PYTHON) -m venv $(ORACLE)
	$(ORACLE_PIP) torch
	$(ORACLE_PIP) --requirement tests/oracle/requirements.txt
	$(ORACLE_PIP) --no-deps mergekit==0.1.5
	@touch $@

oracle: $(ORACLE)/.ready

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
