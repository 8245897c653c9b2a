# make demo: install into .venv and analyse the embedded photo.   make test: the same set-up, all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)

.PHONY: demo test lint bench gpu-proof gpu-check clean instruction-counts sanitize

$(STAMP): pyproject.toml setup.py constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "setuptools>=77" "pybind11>=3" ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test,lint]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/ifan demo --out out/demo

# The operations in a process of their own: after all other tests in one process, with two threads, they have died of a
# segmentation fault whose cause is not known yet.
test: $(STAMP)
	$(BIN)/python -m pytest --ignore tests/ops
	$(BIN)/python -m pytest tests/ops

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

instruction-counts: $(STAMP)
	$(BIN)/python tests/native/instructions.py --write

sanitize: $(STAMP)
	tests/native/sanitize.sh tests/ops tests/inference/test_engine.py tests/inference/test_bf16.py

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-group-by=fullfunc,param:case --benchmark-columns=median,iqr,rounds

# The Triton kernels without a GPU, by the installed version and by the oldest supported one: interpreted under
# line and branch coverage, then every launch compiled for every GPU family.
OLD_TRITON := build/triton-3.6.0
PROOF := -m coverage run --branch --source=kernels -m pytest tests/kernels -m "" -k "not network"
$(OLD_TRITON)/.installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade --target $(OLD_TRITON) triton==3.6.0 "numpy<2.4"
	touch $@

gpu-proof: $(STAMP) $(OLD_TRITON)/.installed
	for path in "" $(abspath $(OLD_TRITON)); do \
	  export PYTHONPATH=$$path COVERAGE_FILE=build/.coverage; \
	  TRITON_INTERPRET=1 $(BIN)/python $(PROOF) && $(BIN)/python -m coverage report --show-missing --fail-under=95 \
	  && $(BIN)/python -m benchmarks.gpu_compile || exit 1; \
	done

# On a machine with a GPU, with its own Python: needs torch, triton and the CUDA toolkit, and no network.
gpu-check:
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) build out *.egg-info ifan/*.so ifan/_build.json
