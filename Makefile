# Every target works from a bare checkout: it builds the virtual environment first when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: quickstart test test-slow test-clusters test-gpu test-faults lint lock bench docs clean

quickstart: $(READY)
	$(BIN)/python -m experiments.quickstart --out runs/quickstart

# Two processes, each test file in one of them: much of the suite is compilation on one core.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Slow tests and sweeps on clusters run the programs that users run: see tests/conftest.py.
test-slow: $(READY)
	JAX_DISABLE_MOST_OPTIMIZATIONS=false $(BIN)/python -m pytest -m slow

# Sweeps on a SLURM of one node, where its programs are installed (slurm-wlm, munge), and on a Ray of two nodes.
test-clusters: $(VENV)/.ray
	JAX_DISABLE_MOST_OPTIMIZATIONS=false $(BIN)/python -m pytest -m '' -rs tests/scaling/execution/test_slurm.py tests/scaling/execution/test_ray.py

# On a machine with an NVIDIA GPU.
test-gpu: $(READY)
	$(BIN)/pip install --quiet --editable '.[cuda]'
	JAX_PLATFORMS=cuda,cpu $(BIN)/python -m pytest -rs tests/scaling/training/test_gpu.py

# Plants some 1,800 faults in the library, one at a time, for an hour: see docs/notes/planted_faults.md.
test-faults: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[faults]'
	$(BIN)/python tests/plant_faults.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build -W --keep-going docs docs/_build

# The versions that `constraints.txt` pins, for all supported Pythons and systems.
lock: $(READY)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --no-emit-index-url --no-header --no-annotate \
		--no-emit-package scaling --output-file constraints.txt pyproject.toml

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(VENV)/.ray: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ray]'
	touch $(VENV)/.ray

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache docs/_build
