# make demo: install into .venv and analyse the embedded photo.   make test: the same set-up, all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Without the advice of setuptools about folders of the same name.
CALMLY := PYTHONWARNINGS="ignore:Editable installation"
NATIVE := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.cpp csrc/*/*/*.h csrc/*/*.cu)

.PHONY: demo test test-analysis lock sbom fuzz mutants wheel-check docs docs-generated lint format bench gpu-proof gpu-interpret-oldest \
  gpu-coverage gpu-sanitize gpu-compile-cuda gpu-check clean instruction-counts sanitize

$(STAMP): pyproject.toml setup.py constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "setuptools>=77" "pybind11>=3" ninja
	$(CALMLY) $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test,lint]"
	touch $(STAMP)

# IFAN_CUDA=require without nvcc in $CUDA_HOME/bin or on the PATH: it comes from the package index, into a folder of its own.
TOOLKIT := build/cuda-13.0
NVCC_PACKAGES := cuda-nvcc cuda-runtime cuda-crt cuda-cccl nvvm
NVCC := $(or $(and $(CUDA_HOME),$(wildcard $(CUDA_HOME)/bin/nvcc)),$(shell command -v nvcc))
ifeq ($(IFAN_CUDA)$(NVCC),require)
export CUDA_HOME := $(abspath $(TOOLKIT)/nvidia/cu13)
$(STAMP): $(TOOLKIT)/.installed
endif
$(TOOLKIT)/.installed:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --target $(TOOLKIT) $(NVCC_PACKAGES:%=nvidia-%==13.0.*)
	touch $@

demo: $(STAMP)
	$(BIN)/ifan demo --out out/demo

# A process a processor, each with one thread; tests of threads ask for theirs.
test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

# The same without PyTorch: what analysing photos, clips and tables needs, in an environment of its own.
ANALYSIS_VENV := .venv-analysis
ANALYSIS_TESTS := tests/faces tests/bulk tests/cli tests/engine $(patsubst %,tests/test_%.py,config crop refine wiring safetensors_io weights)
LOCK := requirements/analysis.txt
$(ANALYSIS_VENV)/.installed: pyproject.toml setup.py $(LOCK) $(NATIVE)
	test -x $(ANALYSIS_VENV)/bin/python || $(PYTHON) -m venv $(ANALYSIS_VENV)
	$(ANALYSIS_VENV)/bin/python -m pip install --quiet --require-hashes --requirement $(LOCK)
	IFAN_CUDA=$(if $(wildcard ifan/_cuda*.so),build,off) \
	  $(CALMLY) $(ANALYSIS_VENV)/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

test-analysis: $(ANALYSIS_VENV)/.installed
	$(ANALYSIS_VENV)/bin/python -m pytest $(ANALYSIS_TESTS) --at-least 100

# Versions and hashes for test-analysis, for every Python and system. PyTorch is not locked: builds for the CPU alone are not
# on the package index, so their hashes are nobody's to list there; constraints.txt has its version.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml requirements/build.in --extra test-analysis --universal --python-version 3.10 \
	  --generate-hashes --upgrade --quiet --no-header --output-file $(LOCK)

# What the package brings along, as CycloneDX: build/ifan.cdx.json. The kernels bring nothing.
sbom: $(STAMP)
	$(PYTHON) -m venv --clear build/sbom
	IFAN_NATIVE=off build/sbom/bin/python -m pip install --quiet .
	build/sbom/bin/python -m pip uninstall --quiet --yes pip setuptools
	$(BIN)/python -m pip install --quiet cyclonedx-bom
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file build/ifan.cdx.json build/sbom/bin/python

# Source archive, a wheel from it, an environment without a compiler, a photo, the same tests.
wheel-check:
	PYTHON=$(PYTHON) tools/check_wheel.sh $(ANALYSIS_TESTS) --ignore tests/faces/test_without_torch.py --at-least 100

docs: docs-generated
	$(BIN)/python -m pip install --quiet --requirement docs/requirements.txt
	$(BIN)/python tools/generate_docs.py
	$(BIN)/mkdocs build --strict --site-dir build/site

CXX_FILES := '*.cpp' '*.h' '*.cu' '*.inc' '*.c'
# The tables of docs/kernels that follow from data files and from the kernels' own code.
docs-generated: $(STAMP)
	$(BIN)/python -m tests.gpu.tools.pages

# Damaged files and hostile calls, each seed others: make fuzz IFAN_FUZZ_SEED=7 IFAN_FUZZ_CASES=1000000 runs for hours.
fuzz: export IFAN_FUZZ_CASES ?= 20000
fuzz: $(STAMP)
	$(BIN)/python -m pytest tests/fuzz --timeout 0

# Small random changes of the code, in a copy, and which of them no test notices: make mutants KIND=cpp COUNT=50 SEED=3.
KIND ?= python
COUNT ?= 200
SEED ?= 0
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants.run --kind $(KIND) --count $(COUNT) --seed $(SEED)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files $(CXX_FILES) | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	git ls-files $(CXX_FILES) | xargs $(BIN)/clang-format -i

instruction-counts: $(STAMP)
	$(BIN)/python -m tests.native.instructions --write

# Left out: a test that compares bits with a child process, which loads the ordinary build.
sanitize: $(STAMP)
	tests/native/sanitize.sh tests/ops tests/engine --deselect tests/engine/test_engine.py::test_without_pytorch_the_engine_finds_the_same

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-group-by=param:case --benchmark-columns=median,iqr,rounds

# What make test leaves of the proof of the GPU kernels without a GPU. Triton: every launch compiled for every GPU family and
# the interpreter's tests under coverage, by the installed version and by the oldest supported one. CUDA: what nvcc made of
# the kernels, and the longer sanitizers. Use -j2.
FAMILIES := sm_80 sm_90 sm_100 gfx942
OLD_TRITON := build/triton-3.6.0
$(OLD_TRITON)/.installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade --target $(OLD_TRITON) triton==3.6.0 "numpy<2.4" \
	  || { echo "gpu-proof: Triton 3.6.0 could not be installed from the package index: not tested with it"; exit 1; }
	touch $@

$(FAMILIES:%=gpu-compile-%): gpu-compile-%: $(STAMP)
	$(BIN)/python -m tests.gpu.tools.gpu_compile --families $*

$(FAMILIES:%=gpu-compile-oldest-%): gpu-compile-oldest-%: $(OLD_TRITON)/.installed
	PYTHONPATH=$(abspath $(OLD_TRITON)) $(BIN)/python -m tests.gpu.tools.gpu_compile --families $*

gpu-interpret-oldest: $(OLD_TRITON)/.installed
	PYTHONPATH=$(abspath $(OLD_TRITON)) $(BIN)/python -m pytest tests/gpu/test_triton_kernels.py -m "full or not full"

gpu-coverage: $(STAMP)
	$(BIN)/python -m pytest tests/gpu/test_triton_kernels.py -m full

gpu-compile-cuda: $(STAMP)
	$(BIN)/python -m tests.gpu.tools.cuda_compile

gpu-sanitize: $(STAMP)
	$(BIN)/python -m pytest tests/gpu/cuda/test_sanitizers.py -m full

gpu-proof: gpu-coverage gpu-interpret-oldest gpu-sanitize gpu-compile-cuda $(FAMILIES:%=gpu-compile-%) $(FAMILIES:%=gpu-compile-oldest-%)

# On a machine with a GPU, with its own Python: needs torch, triton and the CUDA toolkit, and no network.
gpu-check:
	IFAN_CUDA=build $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) -m tests.gpu.tools.gpu_check

clean:
	rm -rf $(VENV) $(ANALYSIS_VENV) build out *.egg-info ifan/*.so ifan/_build.json
