# make demo: install into .venv and analyse the embedded photo.   make test: the same set-up, all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)

.PHONY: demo test lint bench clean instruction-counts sanitize

$(STAMP): pyproject.toml setup.py constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "setuptools>=77" "pybind11>=3" ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test,lint]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/ifan demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

instruction-counts: $(STAMP)
	$(BIN)/python tests/native/instructions.py --write

sanitize: $(STAMP)
	tests/native/sanitize.sh tests/ops tests/inference/test_engine.py

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-group-by=fullfunc,param:case --benchmark-columns=median,iqr,rounds

clean:
	rm -rf $(VENV) build out *.egg-info ifan/*.so ifan/_build.json
