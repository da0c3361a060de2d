# make train [ARGS="optimizer=sgd lr=0.1"] · make test · make test-slow · make test-all · make lint   (each sets up .venv by itself, once)
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test test-slow test-all lint format clean
.DELETE_ON_ERROR:

# torch first and alone: its version decides what the rest may install
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

train: $(READY)
	@$(BIN)/python train.py $(ARGS)

# Two workers with one thread each: more threads than cores spin instead of working.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not server and not gpu" $(ARGS)

# The rest, but for what needs a GPU.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "(slow or server) and not gpu" $(ARGS)

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
