# Everything runs from .venv; the stamp makes it anew when what it is made from changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup protos lint test demo serve bench-engine bench-router clean

setup: $(STAMP)

# torch first and pinned: the pin takes whichever build the index offers, and nothing after it may replace it.
$(STAMP): pyproject.toml protos/pyproject.toml protos/generate.py deploy/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pith needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint deploy/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint deploy/constraints.txt --editable ./protos --editable '.[dev]'
	touch $@

# After an edit of a .proto file; the install above has made them once.
protos: setup
	$(BIN)/python protos/generate.py

lint: setup protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v npx >/dev/null; then cd protos && npx --yes @bufbuild/buf@1.75.0 lint; \
	else echo 'buf lint skipped: no npx on this machine'; fi

# Two files at a time, each worker with one thread of torch: more would compete for the processors.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

demo: setup protos
	$(BIN)/python -m deploy.demo

serve: setup protos
	$(BIN)/python -m deploy.serve

bench-engine: setup protos
	$(BIN)/python -m tests.bench.engine --json tests/bench/results/engine-cpu-$$(date +%F).json

bench-router: setup protos
	$(BIN)/python -m tests.bench.router --json tests/bench/results/router-$$(date +%F).json

clean:
	rm -rf .venv .pith
