# Every target sets up its own virtual environment once; a stamp makes the next call cheap.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS ?= pipeline sources_sinks publisher local_runner inference serving scorers costs

.PHONY: help setup demo test lint templates bench clean distclean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## create the virtual environment and install the project in it

$(STAMP): setup.py constraints.txt
	@echo "Setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	# torch first and by its pin: a looser request can pull the CUDA build, several gigabytes of it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,train,evaluate,serve,test]'
	@touch $@

demo: $(STAMP)  ## publish, stream, batch, alert, land in BigQuery and query, all on this machine
	$(BIN)/python -m pipelines.demo $(DEMO_ARGS)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, then every test, the integration tests on the emulators too
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

bench: $(STAMP)  ## the benchmarks behind the figures in benchmarks/RESULTS.md (BENCHMARKS=pipeline for one)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

templates: $(STAMP)  ## write the specs of the Flex templates to out/templates, offline (PROJECT, REGION)
	$(BIN)/python -m templates.metadata --check
	$(BIN)/python -m templates.build --offline=out/templates \
		--project=$(or $(PROJECT),my-project) --region=$(or $(REGION),us-central1)

clean:  ## remove what runs leave behind (models, outputs, caches), keep the environment
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the environment too
	rm -rf $(VENV)
