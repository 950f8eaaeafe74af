PYTHON ?= python3
BIN := .venv/bin
# More flags for the demo, `make demo DEMO_FLAGS="--temperature 2"`.
DEMO_FLAGS ?=

.PHONY: demo test lint bench

# Trains a small teacher, distils it, prints the table; results under outputs/demo.
demo: .venv/ready
	$(BIN)/python run_distill.py recipes/demo/distill.yaml --overwrite_output_dir $(DEMO_FLAGS)

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready
	$(BIN)/python benchmarks/lstm.py
	$(BIN)/python benchmarks/linear.py
	$(BIN)/python benchmarks/adversarial.py
	$(BIN)/python benchmarks/preparation.py
	$(BIN)/python benchmarks/limit.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sparse.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/training.py

.venv/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@
