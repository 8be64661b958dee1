# Each target builds what it needs in .venv from nothing.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test check fast fmt reference clean

demo: .venv/.installed
	$(BIN)/plait run

# Two processes: most of the tests wait for processes that they start, kill and start again. They take files in the
# order of tests/conftest.py, the long ones first. One rerun, counted in the last line: a test that kills real processes
# races with whatever else the machine does.
test: .venv/.tested
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --reruns 1

# the part of the tests that starts no Ray: under a minute
FAST := tests/infra tests/models tests/pipelines/test_key.py tests/test_conf.py tests/test_layers.py

check: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -m "not slow" $(FAST)

fast: .venv/.tested
	$(BIN)/python -m pytest -q -m "not slow" $(FAST)

fmt: .venv/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

reference: .venv/.installed
	$(BIN)/python -m pipelines.cli.reference > docs/reference.md

clean:
	rm -rf .venv
