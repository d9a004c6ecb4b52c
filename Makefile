# Everything starts here: each target sets up what it needs first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test bars check docs linkcheck bench bench-fit bench-extra tensorboard lock clean

help:            ## this list
	@grep -hE '^[a-z-]+: *.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1	/' | expand -t 24
	@echo '  (pass options with ARGS, e.g.  make train ARGS="--steps 50000 --seed 1")'
	@echo '  $(BIN)/valueapprox --help  lists the commands, which these targets start too'

setup: $(READY)  ## create .venv from the lock file (uv if it is there, else pip)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) (once) ..."
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e . ; \
	else \
	  $(PYTHON) -m venv --clear $(VENV) && \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e . ; \
	fi
	@touch $@

train: $(READY)  ## learn the values of a fixed policy in CartPole-v1 on two Ray workers, and report
	@$(BIN)/python scripts/train.py $(ARGS)

test: $(READY)   ## run the test suite, on two cores
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

bars: $(READY)   ## checks that take minutes each: hostile clients, damaged journals, bias, the same bits, all combinations
	@set -e; for bar in tests/bars/*.py; do echo "$$bar"; $(BIN)/python $$bar $(ARGS); done

check: $(READY)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## build the documentation, docs/_build/html/index.html; a warning is an error
	@$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	@echo "docs/_build/html/index.html"

linkcheck: $(VENV)/.docs  ## look whether the links of the documentation lead somewhere (needs the network)
	@$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck $(ARGS)

$(VENV)/.docs: $(READY)
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e '.[docs]'; \
	else $(BIN)/python -m pip install --quiet -e '.[docs]'; fi
	@touch $@

bench: $(READY)  ## speed beside NumPy and C, and PyTorch and JAX where installed, in one run
	@$(BIN)/python scripts/benchmark.py $(ARGS)

bench-fit: $(READY)  ## speed of fitting beside PyTorch and scikit-learn, where installed
	@$(BIN)/python scripts/benchmark_fit.py $(ARGS)

bench-extra: $(READY)  ## install PyTorch, JAX and scikit-learn, for the two above
	@if command -v uv >/dev/null 2>&1; then uv pip install --python $(BIN)/python -e '.[bench]'; \
	else $(BIN)/python -m pip install -e '.[bench]'; fi

tensorboard: $(READY)  ## look at the runs, on http://127.0.0.1:6006
	@$(BIN)/tensorboard --logdir runs --host 127.0.0.1 $(ARGS)

lock:            ## renew requirements.lock (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-emit-index-url --no-header \
	  --generate-hashes --quiet --output-file requirements.lock $(ARGS)

clean:           ## remove caches and the environment; runs/ is kept
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
