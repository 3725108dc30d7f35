# `make demo` and `make test` work from a fresh clone with nothing but Python >= 3.11; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test unit check audit install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "align needs Python >= 3.11, %s is %s; try make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	@echo "Installing the tested versions into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	@$(BIN)/python scripts/demo.py

# Two at a time; who has none left takes half of the other's: with whole files one waited for the other's last
test: install check
	$(BIN)/python -m pytest -n 2 --dist worksteal

unit: install
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/end_to_end --ignore=tests/trainers --ignore=tests/distributed --ignore=tests/faults --ignore=tests/fuzz

check: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# pip-audit in an environment of its own: it needs other versions of what it audits
audit:
	@$(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit
	@.audit/bin/python scripts/audit.py

clean:
	rm -rf .venv .audit build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
