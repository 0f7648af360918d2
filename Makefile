# `make demo` and `make test` work right after a clone: each makes the environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test quick soak lint zoo clean

help:
	@echo "make demo   train a small network, forget its data, quantize it to 4 bits (about a minute)"
	@echo "make test   run the tests (ten minutes on two cores), and list the slowest"
	@echo "make quick  run those that neither export nor start processes (under two minutes)"
	@echo "make soak   kill, fill, damage, fuzz and repeat for docs/reliability.md (about an hour)"
	@echo "make lint   check style and formatting"
	@echo "make zoo    measure fxquant on 330 networks of three zoos, for docs/zoo.md (an hour and a half)"
	@echo "make clean  remove the environment, caches and the demo's files"
	@echo "PYTHON=...  the Python to use, 3.10 or newer (python3)"

demo: $(VENV)/.demo-installed
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/digits/run.sh

# Files go to processes whole, as tests of one file share what is slow to make, in the order of
# tests/conftest.py. What tests start takes one thread each as well.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: $(VENV)/.test-installed $(VENV)/.browser-installed
	$(PYTEST) $(PARALLEL) --durations=25

quick: $(VENV)/.test-installed
	$(PYTEST) $(PARALLEL) -m "not soak and not slow"

soak: $(VENV)/.test-installed
	$(PYTEST) -m soak

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Networks that runs/zoo already has are not measured again; remove it to start anew.
zoo: $(VENV)/.timm-installed
	PYTHONPATH=benchmarks $(BIN)/python -m zoo --jobs 2 --table docs/zoo.md

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# A stamp for each extra: installed again only when what the project declares has changed.
$(VENV)/.%-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# onnxruntime-web, to run exported files in where there is a Node; tests say so where there is none.
$(VENV)/.browser-installed: tests/browser/package.json | $(BIN)/python
	mkdir -p $(VENV)/browser
	cp $< $(VENV)/browser/
	cd $(VENV)/browser && if command -v npm; then npm install --no-audit --no-fund --silent; fi
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: fxquant needs Python 3.10 or newer"; echo "hint: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
