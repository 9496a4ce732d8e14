PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-slow lint format bench docs wheel-check clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/installed ## Prune and train on the embedded images, show the table and the report (3 to 4 minutes on 2 cores)
	$(BIN)/pathex demo

# One process a core, each with one thread; what a file shares is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test: $(VENV)/dev ## Run the default tests
	$(PYTEST)

test-slow: $(VENV)/dev ## Run every test that needs no GPU
	$(PYTEST) -m "not gpu"

lint: $(VENV)/dev ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed ## Measure seconds and memory on this machine, into bench/
	for suite in rounds scale training; do $(BIN)/python -m benchmarks.$$suite --out bench/$$suite.csv || exit 1; done

docs: $(VENV)/dev ## Run the examples and build the documentation into site/
	$(BIN)/python scripts/make_docs.py
	$(PYTEST) tests/test_docs.py -k examples_run
	$(BIN)/mkdocs build --strict

wheel-check: $(VENV)/dev ## Build a wheel, install it into an empty environment and run the demo there
	PYTHON=$(PYTHON) scripts/check_wheel.sh

clean: ## Remove what the targets made, but not the environment
	rm -rf build dist site bench pathex-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "pip installs into $(VENV) what is missing there. From PyPI, PyTorch for Linux comes with CUDA: 5.7 GB in all."
	@echo "Smaller, for the CPU: $(BIN)/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
	@echo "beforehand, or VENV=FOLDER with an environment that has PyTorch."
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(VENV)/installed
