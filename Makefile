# Every target sets up its own virtual environment once; a stamp makes the next call cheap.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BENCHMARKS ?= pipeline processes sources_sinks publisher local_runner stream inference serving serving_overload scorers costs
PYTHONS ?= python3.11 python3.12 python3.13

# On Linux, PyPI's build of torch brings CUDA, 4 GB of it; PyTorch's own index has one without.
TORCH ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VERSION := import sys; print("%d.%d" % sys.version_info[:2])
QUOTED := '$(subst ','\'',$(PYTHON))'

# Sets $$python to PYTHON, or where that is not given to the first that is supported.
define FIND_PYTHON
if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi; \
python=; found=; \
for candidate in "$$@"; do \
	version=$$("$$candidate" -c '$(VERSION)' 2>/dev/null) || continue; \
	case $$version in 3.11|3.12|3.13) python=$$candidate; break;; esac; \
	found="$$found $$candidate is $$version,"; \
done; \
if [ -z "$$python" ]; then \
	found=$${found:- nothing,}; \
	echo "expected Python 3.11, 3.12 or 3.13, found$${found%,} (looked for $$*): pass PYTHON=/path/to/python" >&2; \
	exit 1; \
fi
endef

# An environment of another Python, or of another build of torch, than the one asked for is made anew.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(PYTHON),)
ifneq ($(shell $(QUOTED) -c '$(VERSION)' 2>/dev/null),$(shell $(BIN)/python -c '$(VERSION)'))
$(STAMP): anew
endif
endif
ifeq ($(origin TORCH) $(shell cat $(STAMP)),command line $(if $(filter cpu,$(TORCH)),cuda,cpu))
$(STAMP): anew
endif
endif

.PHONY: help setup anew demo test test-pythons lint templates bench clean distclean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## create the virtual environment and install the project in it (PYTHON=python3.12, TORCH=cuda)

$(STAMP): setup.py constraints.txt
	@$(FIND_PYTHON); \
	echo "Setting up $(VENV) with Python $$version (a few minutes the first time)"; \
	"$$python" -m venv --clear $(VENV)
	# torch first and by its pin. An index that does not answer must not hold the others up.
	@torch=$$(grep '^torch==' constraints.txt); \
	if [ $(TORCH) = cpu ]; then \
		$(PIP) --retries 0 --timeout 5 --extra-index-url $(TORCH_INDEX) "$$torch" || $(PIP) "$$torch"; \
		if $(BIN)/python -m pip show --quiet triton 2>/dev/null; then \
			echo "$(TORCH_INDEX) did not serve $$torch: PyPI's build with CUDA is installed, 4 GB more"; \
		fi; \
	else \
		$(PIP) "$$torch"; \
	fi
	$(PIP) -c constraints.txt -e '.[local,train,evaluate,serve,test]'
	@echo $(TORCH) > $@

demo: $(STAMP)  ## publish, stream, batch, alert, land in BigQuery and query, all on this machine
	@# 141: somebody cut the output, as by head. That is no failure, and make must not report one.
	@$(BIN)/anomaly demo $(DEMO_ARGS) || { status=$$?; [ $$status -eq 141 ] || exit $$status; }

lint: $(STAMP)  ## ruff, mypy, and vulture for dead code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

test: lint  ## lint, then every test, the integration tests on the emulators too
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

test-pythons:  ## setup, demo and tests, each in a new environment, on every Python of PYTHONS that is there
	@status=0; summary=; \
	for python in $(PYTHONS); do \
		version=$$($$python -c 'import platform; print(platform.python_version())' 2>/dev/null) || version=; \
		venv=.venv-$$(basename $$python); result=passed; \
		if [ -z "$$version" ]; then result="not found"; \
		else \
			rm -rf $$venv; \
			for target in setup demo test; do \
				echo "== $$python ($$version): make $$target"; \
				$(MAKE) $$target VENV=$$venv PYTHON=$$python || { result="make $$target failed"; status=1; break; }; \
			done; \
		fi; \
		summary="$$summary$$python $$version: $$result\n"; \
	done; \
	printf "\n$$summary"; \
	case $$summary in *passed*) exit $$status;; *) exit 1;; esac

bench: $(STAMP)  ## the benchmarks behind the figures in benchmarks/RESULTS.md (BENCHMARKS=pipeline for one)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

templates: $(STAMP)  ## write the specs of the Flex templates to out/templates, offline (PROJECT, REGION)
	$(BIN)/python -m templates.metadata --check
	$(BIN)/python -m templates.build --offline=out/templates \
		--project=$(or $(PROJECT),my-project) --region=$(or $(REGION),us-central1)

clean:  ## remove what runs leave behind (models, outputs, caches), keep the environment
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the environments too
	rm -rf $(VENV) .venv-*
