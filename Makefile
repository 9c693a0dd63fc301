# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up everything they need in .venv and are fast once it is there.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
SPACE_ARGS ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

# The oldest supported releases (docs: pyproject.toml); the newest tested ones are in constraints.txt.
OLDEST_TRL := 1.12.0
OLDEST_TRANSFORMERS := 5.17.0
OLDEST_HUB := 1.33.0
OLDEST_TOKENIZERS := 0.23.1
SEAM_TRL := .seam/trl-$(OLDEST_TRL)
SEAM_HOST := .seam/oldest
pinned = $(shell sed -n 's/^$(1)==//p' constraints.txt)

export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo cards hub-demo reproduce-small space test test-fast test-all fault-matrix check format seam deepspeed gpu-proof wheel site clean
.DEFAULT_GOAL := test

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("trl-maxmin needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: the rest then resolves against it instead of choosing a torch of its own.
	$(BIN)/python -m pip install "torch==$(call pinned,torch)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

demo: install
	$(BIN)/trl-maxmin demo $(DEMO_ARGS)

# The cards of model_cards/, from the run record that lies there.
cards: install
	$(BIN)/python -m model_cards.render

# What a push does, on a Hub of our own on this machine: no account, nothing leaves it. Needs the output of `make demo`.
HUB_DEMO_DIR ?= maxmin-demo
hub-demo: install
	@test -f $(HUB_DEMO_DIR)/report.json || (echo "There is no $(HUB_DEMO_DIR)/report.json: run \`make demo\` first." >&2; exit 1)
	$(BIN)/python -m tests.hub_server -- sh -c '$(BIN)/trl-maxmin push $(HUB_DEMO_DIR) --repo_id me/film --dataset \
		&& $(BIN)/trl-maxmin pull me/film --output_dir $(HUB_DEMO_DIR)-pulled'

# The page for the output of `make demo`.
space: install
	@$(BIN)/python -c 'import gradio' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[space]"
	$(BIN)/trl-maxmin space --run maxmin-demo $(SPACE_ARGS)

# IMDb at minority share 0.20 (examples/imdb), an hour on two cores; says whether it agrees with the recorded runs.
# Interrupted, it goes on where it was.
SMALL_DIR ?= imdb-small
reproduce-small: install
	@$(BIN)/python -c 'import sklearn' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[eval]"
	$(BIN)/python examples/imdb/run_grid.py --config examples/recipes/imdb/small.yaml --output_dir $(SMALL_DIR)
	$(BIN)/python examples/imdb/report_grid.py --cells $(SMALL_DIR)/cells --against examples/imdb/results/small

# The package as an index gets it: built, checked, and its wheel tried in an empty environment.
WHEEL_ENV ?= .wheel
wheel:
	rm -rf dist $(WHEEL_ENV) && $(PYTHON) -m venv $(WHEEL_ENV)
	$(WHEEL_ENV)/bin/python -m pip install -q build twine
	$(WHEEL_ENV)/bin/python -m build -o dist .
	$(WHEEL_ENV)/bin/python -m twine check --strict dist/*
	rm -rf $(WHEEL_ENV) && $(PYTHON) -m venv $(WHEEL_ENV)
	$(WHEEL_ENV)/bin/python -m pip install -q "torch==$(call pinned,torch)"
	$(WHEEL_ENV)/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd $(WHEEL_ENV) && bin/trl-maxmin --version && bin/trl-maxmin demo --num_rollouts 4 --output_dir demo

# The docs site, in _site/: every warning is an error.
site: install
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Two workers of one thread each: the models are tiny, so more threads per worker only compete. Each takes a half in order and
# then from the other's end, so what a module shares is made once.
test: install
	TRL_MAXMIN_EXPECT_TRL=$(call pinned,trl) TRL_MAXMIN_EXPECT_TRANSFORMERS=$(call pinned,transformers) \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

# With what takes minutes and repeats in full what other tests show in small: an hour.
test-all: install
	TRL_MAXMIN_EXHAUSTIVE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

# All faults at all requests of every push and pull; `make test` meets a fifth of them.
fault-matrix: install
	TRL_MAXMIN_EXHAUSTIVE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal tests/hub/test_fault_matrix.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Old releases go into folders of their own, put in front of the environment by PYTHONPATH; the tests
# assert the versions they imported, so a folder that is not picked up cannot pass unseen.
$(SEAM_TRL)/.installed: $(STAMP)
	rm -rf $(SEAM_TRL)
	$(BIN)/python -m pip install -q --no-deps --target $(SEAM_TRL) "trl==$(OLDEST_TRL)"
	@# TRL 1.12 imports requests without asking for it; huggingface_hub 2 no longer brings it along.
	$(BIN)/python -m pip install -q --target $(SEAM_TRL) requests
	@touch $@

$(SEAM_HOST)/.installed: $(STAMP)
	rm -rf $(SEAM_HOST)
	$(BIN)/python -m pip install -q --no-deps --target $(SEAM_HOST) "transformers==$(OLDEST_TRANSFORMERS)" \
		"huggingface_hub==$(OLDEST_HUB)" "tokenizers==$(OLDEST_TOKENIZERS)"
	@# huggingface_hub 1 talks through httpx, which the environment of huggingface_hub 2 need not have.
	$(BIN)/python -m pip install -q --target $(SEAM_HOST) "httpx<1"
	@touch $@

SEAM_PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m seam -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

# On the newest hosts `make test` runs the same tests.

seam: install $(SEAM_TRL)/.installed $(SEAM_HOST)/.installed
	@echo "seam: oldest TRL on the newest transformers"
	TRL_MAXMIN_EXPECT_TRL=$(OLDEST_TRL) TRL_MAXMIN_EXPECT_TRANSFORMERS=$(call pinned,transformers) \
		PYTHONPATH=$(CURDIR)/$(SEAM_TRL) $(SEAM_PYTEST)
	@echo "seam: oldest TRL on the oldest transformers and huggingface_hub"
	TRL_MAXMIN_EXPECT_TRL=$(OLDEST_TRL) TRL_MAXMIN_EXPECT_TRANSFORMERS=$(OLDEST_TRANSFORMERS) \
		TRL_MAXMIN_EXPECT_HUB=$(OLDEST_HUB) \
		PYTHONPATH=$(CURDIR)/$(SEAM_HOST):$(CURDIR)/$(SEAM_TRL) $(SEAM_PYTEST)

# What runs on a GPU, in ten minutes; results go to docs/results/gpu. docs/performance.md says how to carry it to a machine
# without a network. On a CPU: make gpu-proof GPU_PROOF_ARGS="--device cpu --tiny --out gpu-dry-run"
gpu-proof:
	PYTHONPATH=$(CURDIR) $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu_proof.py $(GPU_PROOF_ARGS)

# DeepSpeed runs on a CPU too, slowly: enough to see that ZeRO-2 and ZeRO-3 give the curves of one process.
DEEPSPEED := .seam/deepspeed
$(DEEPSPEED)/.installed: $(STAMP)
	rm -rf $(DEEPSPEED)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --no-deps --target $(DEEPSPEED) \
		deepspeed hjson py-cpuinfo msgpack ninja einops nvidia-ml-py
	@touch $@

deepspeed: install $(DEEPSPEED)/.installed
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(DEEPSPEED) PATH=$(CURDIR)/$(DEEPSPEED)/bin:$(CURDIR)/$(BIN):$$PATH \
		$(BIN)/python -m pytest -q -m deepspeed $(PYTEST_ARGS)

clean:
	rm -rf .seam .wheel _site .pytest_cache .ruff_cache .mypy_cache build dist
