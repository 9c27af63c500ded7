# Each target works as the first command on a fresh machine: it makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types docs clean

demo: $(VENV)/installed  ## pretrain with and without the designer, probe, and draw (about 8 minutes on 2 cores)
	$(BIN)/vpt demo configs/demo.yaml

test: $(VENV)/installed-dev  ## run the tests
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow package_dir through an editable install, so a plain copy is checked.
types: $(VENV)/installed-dev  ## check types
	rm -rf build && $(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types . && rm -rf build/lib build/bdist*
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p vpt_vision -p vpt_kernels

docs: $(VENV)/installed-dev  ## build the documentation into build/site; a broken link is an error
	$(BIN)/mkdocs build --quiet --strict

clean:  ## remove the virtual environment and build products, never a run
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python setup.py pyproject.toml
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python setup.py pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev]" setuptools
	touch $@ $(VENV)/installed
