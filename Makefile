# `make demo` and `make test` are all a fresh machine needs: Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# without it threaded code is many times slower where cores are shared
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-all lint types wheel-test bench clean

demo: $(VENV)/installed
	$(BIN)/iaunet_demo

# tests in as many processes as there are cores, four at most: each takes up to a GB
SIDE_BY_SIDE = -n $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() or 1))") --dist worksteal

test: lint types
	$(BIN)/pytest -m "not slow" $(SIDE_BY_SIDE)
	$(MAKE) wheel-test

test-all: lint types
	$(BIN)/pytest --hypothesis-profile=searching --cov --cov-report=term-missing:skip-covered
	$(MAKE) wheel-test

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the mapping of the component folders: it checks an installed copy
types: $(VENV)/installed
	rm -rf .typed build
	$(PIP) install --quiet --no-deps --no-build-isolation --target .typed -c constraints.txt .
	MYPYPATH=.typed $(BIN)/mypy -p iaunet

# the wheel in an environment of its own, away from the checkout
wheel-test: $(VENV)/installed
	PYTHON="$(BIN)/python" sh tests/wheel.sh

# on generated images, in minutes; as measured: make bench DATA=FOLDER NNUNET=ENVIRONMENT RESULTS=FOLDER
RESULTS ?= bench_results
BENCH := $(if $(DATA),--data "$(DATA)") $(if $(NNUNET),--nnunet "$(NNUNET)")

bench: $(VENV)/installed
	for stage in planning training_epoch prediction startup; do \
		$(BIN)/python benchmarks/$$stage.py $(BENCH) --json "$(RESULTS)/$$stage.json" || exit 1; \
	done
	$(BIN)/python benchmarks/render.py "$(RESULTS)" > "$(RESULTS)/tables.md"

$(VENV)/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt setuptools wheel
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .typed build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis iaunet_demo
