# Everything a person does with the project. `make run` on a fresh machine needs Python 3.11 (or 3.12) and make.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install run try serve ui docs lint test test-pretended-device test-chaos mutants gpu-check lock audit sbom

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
EXPERIMENT ?= workflows/experiments/tiny.yaml
# Where the runs, the models and the tracking database go. Absolute, because Ray's workers stand elsewhere.
export EDLM_HOME ?= $(CURDIR)/runs
# Two worker processes with several threads each slow one another down on a few cores.
export OMP_NUM_THREADS ?= 1
export PYTHONUNBUFFERED = 1
# A cluster is dozens of processes with the same imports: the first one compiles them, for all.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# One process per core, at most as many as fit a laptop's memory; the tests of a file share one.
SPREAD := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# In a process of their own: torch cannot forget a device that was registered.
PRETENDING := tests/gpu tests/workflows/benchmarking/test_pretended_device.py
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "EXPERIMENT=$(EXPERIMENT)  EDLM_HOME=$(EDLM_HOME)"

install: $(INSTALLED) ## set up .venv with the pinned versions

run: install ## the whole chain: text in, trained, measured, tracked, served (EXPERIMENT=...)
	@$(BIN)/python -m workflows.pipeline $(EXPERIMENT)

try: install ## the newest registered model and its playground, in one process: ready in seconds, until Ctrl-C
	@$(BIN)/python -m workflows.try_model

serve: install ## the endpoint, until Ctrl-C
	@$(BIN)/python -m workflows.serve $(EXPERIMENT)

ui: install ## MLflow on http://127.0.0.1:5000, until Ctrl-C
	@mkdir -p "$(EDLM_HOME)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 --backend-store-uri "sqlite:///$(EDLM_HOME)/mlflow.db" --host 127.0.0.1 --port 5000

docs: install ## the documentation site, built strictly into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo "build/site/index.html"

lint: install ## style, types and the direction of the imports
	@echo "== ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== pyright" && $(BIN)/pyright
	@echo "== import-linter" && $(BIN)/lint-imports

test: install ## lint, then every test but those of the next line
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint test-pretended-device
	@echo "== pytest" && $(BIN)/python -m pytest $(SPREAD) $(addprefix --ignore=,$(PRETENDING))

# Beside lint, which takes one core for a minute.
test-pretended-device: install
	@echo "== pytest, on a pretended device" && $(BIN)/python -m pytest $(SPREAD) $(PRETENDING)

test-chaos: install ## processes killed, replicas from none, and SOAK_MINUTES of load (20); resumable, report in docs/chaos.md
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test-chaos]'
	@SOAK_MINUTES=$${SOAK_MINUTES:-20} $(BIN)/python -m tests.chaos_run

mutants: install ## faults planted at random places of the science for MINUTES (60); SEED (0) chooses them
	@nice $(BIN)/python -m tests.mutation_run --minutes $${MINUTES:-60} --seed $${SEED:-0} --report "$(EDLM_HOME)/mutants.md"

gpu-check: install ## tests and figures on this machine's GPU in nine minutes (docs/gpu.md); without one a rehearsal
	@.ci/gpu-check

# Index settings stay outside of the file: it names versions and digests, not the place that they come from.
lock: install ## build/requirements.lock: the packages of the cluster image by version and SHA-256
	@mkdir -p build
	@$(BIN)/uv pip compile --quiet --python $(BIN)/python --generate-hashes --no-annotate --no-emit-index-url --constraint constraints.txt --extra cluster --extra hf --extra s3 --custom-compile-command "make lock" --output-file build/requirements.lock pyproject.toml
	@awk '/^[A-Za-z].*==/ && !/\\$$/ {print "the index publishes no digest of " $$1 ": pip will refuse it"}' build/requirements.lock
	@echo "build/requirements.lock: pip install --require-hashes -r build/requirements.lock"

audit: install ## the installed packages against the known vulnerabilities (needs the network)
	@$(BIN)/uv tool run --quiet --python $(BIN)/python pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

sbom: install ## build/sbom.json: a bill of materials of the environment, in the format of CycloneDX
	@mkdir -p build
	@$(BIN)/uv tool run --quiet --python $(BIN)/python --from cyclonedx-bom cyclonedx-py environment --output-reproducible --output-file build/sbom.json $(BIN)/python
	@echo "build/sbom.json"

# torch first and by pip: an unpinned torch, asked for beside the rest, may bring another build than the tested one, and
# only pip looks where the machine's settings say. uv sets up the other 250 packages in a third of pip's time.
$(INSTALLED): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "no python3 found: install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1); edlm needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "[1/3] a virtual environment in .venv, from $$("$(PYTHON)" --version)"
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv
	@echo "[2/3] PyTorch, and uv to install the rest"
	@$(PIP) torch
	@$(PIP) uv
	@echo "[3/3] Ray, DeepSpeed, MLflow, datasets, edlm and its tests' tools"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test]'
	@touch $(INSTALLED)
	@echo "installed in .venv"
