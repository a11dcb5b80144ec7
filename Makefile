# Everything runs in .venv, made once from constraints.txt: `make demo` and `make test` need Python >= 3.11 and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Three workers of one thread each: on two cores more threads only wait for one another, while a worker often waits for a process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -rs --durations=25

# What is compiled is kept: or every process of a test would compile llmos again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-all fuzz check format docs build clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0" -e ".[all,dev]"
	touch $@

# The whole story on real data, in a new workspace under demo-workspace/.
demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not system and not gpu"

# With what takes minutes, needs root or a system tool; what is not here is a listed skip.
test-all: $(INSTALLED)
	$(PYTEST)

# Two minutes for each parser of what somebody else may have written; `make fuzz SECONDS=600` for longer.
SECONDS ?= 120
fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris==3.0.0"
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m tests.fuzz $(SECONDS)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)
	COLUMNS=100 $(BIN)/python docs/make_cli.py

# The wheel in a clean environment, used from outside the checkout.
build: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist .
	PYTHON="$(PYTHON)" scripts/try_wheel.sh dist/llmos_cli-*.whl

clean:
	rm -rf build dist demo-workspace *.egg-info
