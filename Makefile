# Everything sets itself up in .venv; PYTHON names the interpreter that makes it (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# what is imported is compiled once, at the first import: of torch and Lightning it takes a quarter of a minute
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint bench clean
help:
	@echo "make demo    synthesize, reconstruct, score, report: see demo/report.html"
	@echo "make test    lint, types and all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measure beside peers (see benchmarks/RESULTS.md)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,view,cpu,train,exchange,cluster]'
	@touch $@

demo: $(READY)
	$(BIN)/neurokube demo demo

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 4 --dist worksteal

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,view,cpu,train,exchange,cluster,bench]'
	for program in engine importing startup memory kills; do $(BIN)/python -m benchmarks.$$program || exit 1; done

clean:
	rm -rf $(VENV) demo build
