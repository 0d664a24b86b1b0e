# Everything on a fresh machine with Python >= 3.10 and a C++20 compiler; the second run only does what changed.
#   make demo    quantize the built-in network for two targets
#   make test    the whole test suite
#   make lint    formatters, linters, types, floors
#   make bench   the benchmarks, results as JSON; those of whole runs with DATA=folder
PYTHON ?= python3
VENV ?= .venv
DETENT_WERROR ?= OFF
PYTEST_ARGS ?= -q -n 2
# Folder with networks and images for the benchmarks of whole runs, see benchmarks/networks.py.
DATA ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
BUILD_TOOLS := "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.25" "ninja>=1.11"
SOURCES := $(shell find csrc cmake python -type f \
	-not -path '*/__pycache__/*' -not -name '*.so' -not -name '*.py[cod]') CMakeLists.txt LICENSE README.md

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/detent demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/kernels.py
ifneq ($(DATA),)
	$(BIN)/python benchmarks/ptq.py --data $(DATA)
	$(BIN)/python benchmarks/accuracy.py --data $(DATA)
endif

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp')
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports

clean:
	rm -rf $(VENV) build out

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else \
	  "detent needs Python 3.10 or newer, %s is %d.%d: run make PYTHON=python3.11" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(BUILD_TOOLS)
	@touch $@

# Installs what is missing, and the package itself. The build folder is kept, so only changed files are compiled.
$(VENV)/.installed: $(VENV)/.created constraints.txt pyproject.toml $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -c constraints.txt --no-build-isolation \
	  --config-settings=cmake.define.DETENT_WERROR=$(DETENT_WERROR) '.[dev]'
	@touch $@
