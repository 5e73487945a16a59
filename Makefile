# `make quickstart` and `make test` work on a fresh Debian or Ubuntu machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU-only torch is a fraction of the default download; see README, "Install".
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: quickstart test test-quick faults faults-long lint format bench real-small real-10m clean

# The stamp depends on what is installed, so that a changed pin installs again.
$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp
	$(PIP) --editable '.[all]'
	touch $@

# The whole chain on a generated world; ARGS adds settings, say ARGS="--out runs/two --seed 2".
quickstart: $(VENV)/.stamp
	$(BIN)/pivots run configs/quickstart.yaml $(ARGS)

# One thread a process: two test processes with two threads each get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

# Lint, types and every test that this machine can run.
test: lint
	$(PYTEST) -m "not faults" --durations=15

# What one runs all the time: without the slow tests.
test-quick: lint
	$(PYTEST) -m "not slow and not faults"

# A folder of real documents.
CORPUS ?= ../shared/corpus

# Kills, full disks, damaged input: in a few minutes. docs/RELIABILITY.md says what is tried.
FAULTS := OMP_NUM_THREADS=1 $(BIN)/python -m
faults: $(VENV)/.stamp-dev
	$(FAULTS) pytest -n 2 --dist worksteal -m faults tests/faults
	$(FAULTS) tests.faults.records

# The same at length, for hours; needs Java and a Slurm that answers (tests/start_slurm.sh).
faults-long: faults
	FAULTS_ROUNDS=5000 $(FAULTS) pytest -n 2 --dist worksteal -m faults tests/faults/test_fuzz.py
	$(FAULTS) tests.faults.records --records 2000000
	$(FAULTS) tests.faults.kills --kills 20
	$(FAULTS) tests.faults.kills --kills 20 --signal SIGTERM
	$(FAULTS) tests.faults.kills --kills 20 --victim worker
	$(FAULTS) tests.faults.kills --kills 20 --engine spark
	$(FAULTS) tests.faults.kills --kills 20 --engine spark --victim worker
	$(FAULTS) tests.faults.kills --kills 20 --engine slurm
	$(FAULTS) launch.bench.load --documents 2000000 $(if $(wildcard $(CORPUS)),--corpus $(CORPUS))
	$(FAULTS) launch.bench.checkpoint_growth

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r mining training eval launch

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The benchmarks that need no GPU; each ends with one JSON line.
bench: $(VENV)/.stamp-dev
	$(BIN)/python -m launch.bench.run_all

# The same chain on the real corpus.
real-small: $(VENV)/.stamp
	$(BIN)/pivots run configs/real-small.yaml --corpus.path $(CORPUS) $(ARGS)

# A model of 10 M parameters on the pivot mix of the real corpus: bits per byte, and what it writes.
real-10m: $(VENV)/.stamp
	for command in tokenizer tokenize count pivots score mix train sample; do \
	  $(BIN)/pivots $$command --config configs/real-10m.yaml --corpus.path $(CORPUS) $(ARGS) || exit; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
